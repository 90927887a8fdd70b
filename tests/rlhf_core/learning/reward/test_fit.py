"""The loop in which the trunk learns: its loss, its parts over processes, and where it can be stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from rlhf_core.errors import CheckpointError
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.reward.batches import VoteData, plan_batches, share_prompts
from rlhf_core.learning.reward.fit import mean_weight, model_scalars, preference_loss, schedule
from rlhf_core.learning.reward.training import RewardSettings, TrainedReward, load_trunk, train_reward_model
from rlhf_core.learning.reward.votes import Labels, RaterEffects, label
from rlhf_core.learning.training_state import TrainingState, load_state, save_state
from rlhf_core.models.heads import RewardModel
from rlhf_core.models.lora_settings import LoraSettings
from tests.rlhf_core.learning.reward.simulated_people import make_trunk, simulated_pairs, simulated_thumbs

SETTINGS = RewardSettings(
    epochs=2, learning_rate=1e-3, head_learning_rate=1e-3, batch_size=8, ensemble=0, rater_model=False
)


class OneOfTwo(Devices):
    """A process that believes to be one of two, without the other: for the parts of a loss."""

    @property
    def count(self) -> int:
        return 2


@pytest.fixture(scope="module")
def trunk_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trunk(tmp_path_factory.mktemp("policy"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def data(thumbs: int = 6, pairs: int = 5) -> VoteData:
    ratings = simulated_thumbs(thumbs, 1)
    choices = simulated_pairs(pairs, 2)
    choices = [msgspec.structs.replace(each, tie=at == 0, chosen_side="left") for at, each in enumerate(choices)]
    return VoteData(ratings, choices, label(ratings, choices))


def loss_of(model: RewardModel, votes: VoteData, indices: list[int], devices: Devices, mine: list[int]) -> torch.Tensor:
    effects = RaterEffects(votes.labels, 1)
    scalars = model_scalars(model, effects, votes.labels)
    batch = votes.batch(mine, model.device, shared_prompts=True)
    whole = votes.labels_of(indices)
    return preference_loss(model, scalars, batch, whole, SETTINGS, judgements=len(votes), devices=devices)[0]


def test_the_loss_of_a_batch_weighs_pairs_and_thumbs_by_their_number(trunk_dir: Path) -> None:
    model, votes = RewardModel(load_trunk(trunk_dir)), data(3, 2)
    settings = msgspec.structs.replace(SETTINGS, thumbs_weight=0.5, centering=0.0)
    alone = Devices(device="cpu")

    def part(indices: list[int]) -> float:
        scalars = model_scalars(model, RaterEffects(votes.labels, 1), votes.labels)
        batch = votes.batch(indices, model.device, shared_prompts=False)
        whole = votes.labels_of(indices)
        # A million judgements share the priors: nothing is left of them here.
        return float(
            preference_loss(model, scalars, batch, whole, settings, judgements=10**6, devices=alone)[0].detach()
        )

    # 3 thumbs of weight 1/2 and 2 pairs of weight 1: (1.5 thumbs + 2 pairs) / 3.5
    assert part([0, 1, 2, 3, 4]) == pytest.approx((1.5 * part([0, 1, 2]) + 2 * part([3, 4])) / 3.5, abs=1e-5)


def test_the_parts_of_two_processes_sum_to_the_loss_and_gradient_of_one(trunk_dir: Path) -> None:
    votes, indices = data(), list(range(11))
    models = [RewardModel(load_trunk(trunk_dir), torch.Generator().manual_seed(0)) for _ in range(2)]
    loss_of(models[0], votes, indices, Devices(device="cpu"), indices).backward()
    two = OneOfTwo(device="cpu")
    halves = [loss_of(models[1], votes, indices, two, indices[rank::2]) for rank in range(2)]
    for each in halves:
        each.backward()
    whole = loss_of(models[0], votes, indices, Devices(device="cpu"), indices)
    assert float((halves[0] + halves[1] - whole).detach().abs()) < 1e-5
    ours, theirs = (dict(model.named_parameters()) for model in models)
    for name, parameter in ours.items():
        if parameter.grad is not None:
            assert torch.allclose(parameter.grad, theirs[name].grad, atol=1e-5), name


def test_a_shared_prompt_gives_the_loss_of_two_rows(trunk_dir: Path) -> None:
    model, votes = RewardModel(load_trunk(trunk_dir)), data()
    assert share_prompts(model, votes)
    assert not share_prompts(model, data(thumbs=4, pairs=0))
    scalars = model_scalars(model, RaterEffects(votes.labels, 1), votes.labels)
    indices = list(range(11))
    losses = []
    for shared in (True, False):
        batch = votes.batch(indices, model.device, shared_prompts=shared)
        assert len(batch.answers.documents.lengths) == (11 if shared else 16)
        whole = votes.labels_of(indices)
        loss, _ = preference_loss(model, scalars, batch, whole, SETTINGS, judgements=11, devices=Devices(device="cpu"))
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_trunk_that_ignores_positions_does_not_share_prompts(trunk_dir: Path) -> None:
    model = RewardModel(load_trunk(trunk_dir))
    rotary = model.trunk.rotary_emb
    forward = rotary.forward

    def deaf(hidden: torch.Tensor, position_ids: torch.Tensor) -> object:
        return forward(hidden, torch.arange(position_ids.shape[1])[None])

    rotary.forward = deaf
    assert not share_prompts(model, data())


def test_every_judgement_is_in_one_batch_of_each_epoch_beside_others_of_its_length() -> None:
    votes = VoteData(simulated_thumbs(50, 1), simulated_pairs(30, 2), data().labels)
    batches = plan_batches(votes, 8, 2, random.Random(0))
    assert len(batches) == 20
    assert sorted(at for batch in batches[:10] for at in batch) == list(range(80))
    spread = [max(map(votes.length, batch)) - min(map(votes.length, batch)) for batch in batches]
    assert sum(spread) / len(spread) < 4  # lengths lie between 6 and 12
    assert batches[:10] != batches[10:]


def test_a_fit_that_is_stopped_and_resumed_has_the_same_bits(trunk_dir: Path, tmp_path: Path, one_thread: None) -> None:
    settings = msgspec.structs.replace(SETTINGS, rater_model=True)
    ratings, pairs = simulated_thumbs(24, 1), simulated_pairs(16, 2)
    states: list[TrainingState] = []
    logged: list[Metrics] = []
    resumed_log: list[Metrics] = []

    def fit(hooks: Hooks) -> TrainedReward:
        return train_reward_model(trunk_dir, ratings, pairs, settings, 3, hooks)

    whole = fit(Hooks(log=logged.append, keep=states.append, keep_every=4))
    save_state(states[0], tmp_path / "state")
    assert states[0].step == 4
    again = fit(Hooks(log=resumed_log.append, resume=load_state(tmp_path / "state")))
    weights = whole.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.model.state_dict().items())
    assert resumed_log == logged[4:]
    assert [each["step"] for each in logged] == [float(at) for at in range(1, 11)]
    assert {"loss", "grad_norm", "alpha", "eta", "side_bias", "learning_rate"} <= set(logged[0])
    assert again.metrics == whole.metrics


def test_a_state_of_other_judgements_is_refused(trunk_dir: Path) -> None:
    states: list[TrainingState] = []
    ratings, pairs = simulated_thumbs(16, 1), simulated_pairs(8, 2)
    many = [msgspec.structs.replace(each, rater=f"r{at % 2}") for at, each in enumerate(ratings)]
    train_reward_model(trunk_dir, ratings, pairs, SETTINGS, 3, Hooks(keep=states.append))
    with pytest.raises(CheckpointError, match="another model"):
        train_reward_model(trunk_dir, many, pairs, SETTINGS, 3, Hooks(resume=states[0]))


def test_lora_leaves_a_plain_trunk_that_differs_by_terms_of_its_rank(trunk_dir: Path) -> None:
    settings = msgspec.structs.replace(SETTINGS, learning_rate=1e-2)
    trained = train_reward_model(
        trunk_dir, simulated_thumbs(24, 1), simulated_pairs(16, 2), settings, 3, lora=LoraSettings(rank=2)
    )
    before, after = load_trunk(trunk_dir).state_dict(), trained.model.trunk.state_dict()
    assert after.keys() == before.keys()
    name = "layers.0.self_attn.q_proj.weight"
    assert int(torch.linalg.matrix_rank(after[name] - before[name], tol=1e-5)) == 2
    assert torch.equal(after["embed_tokens.weight"], before["embed_tokens.weight"])


def test_bfloat16_computes_in_half_and_learns_in_full_precision(trunk_dir: Path) -> None:
    ratings, pairs = simulated_thumbs(24, 1), simulated_pairs(16, 2)
    full, half = (
        train_reward_model(trunk_dir, ratings, pairs, SETTINGS, 3, devices=Devices(compute, device="cpu"))
        for compute in ("float32", "bfloat16")
    )
    assert {each.dtype for each in half.model.parameters()} == {torch.float32}
    assert half.metrics["loss"] != full.metrics["loss"]
    assert half.metrics["loss"] == pytest.approx(full.metrics["loss"], abs=0.05)


def test_the_learning_rate_rises_over_the_warmup_and_falls_to_nothing() -> None:
    # 10 steps, 2 of warmup: 1/2, 1, then 8/9, 7/9, .. 1/9.
    shares = [schedule(step, 10, 0.2) for step in range(10)]
    assert shares == pytest.approx([0.5, 1.0, *(each / 9 for each in range(8, 0, -1))])


def test_a_doubted_judgement_counts_for_little_even_when_it_is_alone_in_its_batch(trunk_dir: Path) -> None:
    model, whole = RewardModel(load_trunk(trunk_dir)), data(0, 2)
    settings = msgspec.structs.replace(SETTINGS, centering=0.0)
    labels = whole.labels._replace(pair_weights=torch.tensor([[1.0, 0.0], [0.01, 0.0]]).double())

    def loss(index: int, labels: Labels) -> float:
        votes = VoteData(whole.ratings, whole.pairs, labels)
        batch = votes.batch([index], model.device, shared_prompts=False)
        scalars = model_scalars(model, RaterEffects(labels, 1), labels)
        alone = Devices(device="cpu")
        mean = mean_weight(labels, 1.0)
        given = (model, scalars, batch, votes.labels_of([index]), settings)
        return float(preference_loss(*given, judgements=10**10, devices=alone, typical=mean)[0].detach())

    # Weights 1 and .01 are .505 on average: the first counts 1 / .505 times, the second .01 / .505 times.
    assert mean_weight(labels, 1.0) == pytest.approx(0.505)
    assert loss(0, labels) == pytest.approx(loss(0, whole.labels) / 0.505, rel=1e-4)
    assert loss(1, labels) == pytest.approx(0.01 * loss(1, whole.labels) / 0.505, rel=1e-4)


def test_a_trunk_that_sees_a_window_shares_prompts_whose_answers_lie_beyond_it(tmp_path: Path) -> None:
    config = MistralConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        sliding_window=8,
        initializer_range=0.5,
    )
    MistralForCausalLM(config).save_pretrained(tmp_path)
    model = RewardModel(load_trunk(tmp_path))
    short, long = (
        msgspec.structs.replace(
            each,
            prompt_token_ids=tuple(range(3, 3 + length)),
            chosen_token_ids=(4,) * length,
            rejected_token_ids=(5,) * length,
        )
        for each, length in zip(simulated_pairs(2, 2), (1, 15), strict=True)
    )
    assert share_prompts(model, VoteData([], [short, long], label([], [short, long])))
