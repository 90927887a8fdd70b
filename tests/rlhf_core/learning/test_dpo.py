"""DPO: its known optimum on a bandit whose raters are Bradley-Terry to the last decimal, and the loop's invariants."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from rlhf_core.errors import SettingsError, TrainingError
from rlhf_core.learning.alternatives_settings import DPOSettings
from rlhf_core.learning.dpo import train_dpo
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.training_state import TrainingState
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable
from rlhf_core.records import PreferencePair
from tests.rlhf_core.learning.bandit import (
    ARMS,
    KL_COEF,
    OPTIMUM,
    arm_probabilities,
    bandit_policy,
    distance,
    pair,
)

FIT = DPOSettings(epochs=110, minibatch_size=64, learning_rate=2e-2, kl_coef=KL_COEF, tie_learning_rate=3e-2)
"""Every step sees all pairs, weighted by how often raters would give them: infinite data."""
SKEWED = torch.tensor([0.1, 0.2, 0.3, 0.4])
PAIRS = [
    pair(
        range(20 + at, 23 + 2 * at), range(60, 64 + at), range(5, 8 + 3 * at), tie=at in (2, 5), margin=0.1 * (at == 1)
    )
    for at in range(7)
]
SMALL = DPOSettings(epochs=2, minibatch_size=3, learning_rate=1e-3, microbatch_tokens=64)


def sigmoid(x: float) -> float:
    return float(torch.sigmoid(torch.tensor(x)))


def votes(eta: float = 0.0) -> tuple[list[PreferencePair], list[float]]:
    """Every ordered pair of arms with the probability that raters with tie threshold `eta` choose so, and every tie."""
    pairs, weights = list[PreferencePair](), list[float]()
    for left in range(4):
        for right in range(4):
            if left == right:
                continue
            d = float(ARMS[left] - ARMS[right])
            pairs.append(pair([left], [right]))
            weights.append(sigmoid(d - eta))
            if left < right and eta:
                pairs.append(pair([left], [right], tie=True))
                weights.append(1.0 - sigmoid(d - eta) - sigmoid(-d - eta))
    return pairs, weights


def fit(trainee: Trainable, pairs: list[PreferencePair], weights: list[float], seed: int = 0) -> list[Metrics]:
    return train_dpo(trainee, pairs, FIT, seed, weights=weights)


@pytest.mark.parametrize("start", [torch.full((4,), 0.25), SKEWED], ids=["uniform", "skewed"])
def test_the_bandit_ends_at_the_optimum_of_its_reference(tiny_policy: LoadedPolicy, start: torch.Tensor) -> None:
    trainee = make_trainable(bandit_policy(tiny_policy, start))
    pairs, weights = votes()
    fit(trainee, pairs, weights)
    # Uniform: exp([2, 1, 0, -1]) / 11.4753. Skewed: .1 e^2, .2 e, .3, .4 / e, over 1.7297.
    best = start * (ARMS / KL_COEF).exp()
    assert distance(arm_probabilities(trainee.policy), best / best.sum()) < 0.02
    if start is not SKEWED:
        assert distance(arm_probabilities(trainee.policy), OPTIMUM) < 0.02


def test_dpo_without_its_reference_ends_elsewhere(tiny_policy: LoadedPolicy) -> None:
    # The mistake: log ratios to a uniform policy, which are logprobs but for a constant.
    trainee = make_trainable(bandit_policy(tiny_policy, SKEWED), reference=bandit_policy(tiny_policy))
    pairs, weights = votes()
    fit(trainee, pairs, weights)
    best = SKEWED * (ARMS / KL_COEF).exp()
    assert distance(arm_probabilities(trainee.policy), best / best.sum()) > 0.1


def test_ties_leave_the_optimum_where_it_is_and_the_threshold_is_found(tiny_policy: LoadedPolicy) -> None:
    trainee = make_trainable(bandit_policy(tiny_policy))
    pairs, weights = votes(eta=1.0)
    metrics = fit(trainee, pairs, weights)
    assert distance(arm_probabilities(trainee.policy), OPTIMUM) < 0.02
    assert metrics[-1]["preference/tie_threshold"] == pytest.approx(1.0, abs=0.03)
    assert metrics[-1]["preference/ties"] == 6


def test_dropping_ties_makes_preferences_look_stronger_than_they_are(tiny_policy: LoadedPolicy) -> None:
    # The mistake: of raters who tie when they hardly care, only those who care are left.
    trainee = make_trainable(bandit_policy(tiny_policy))
    pairs, weights = votes(eta=1.0)
    decided = [at for at, each in enumerate(pairs) if not each.tie]
    fit(trainee, [pairs[at] for at in decided], [weights[at] for at in decided])
    # log odds at d = .5: log((1 + e^1.5) / (1 + e^.5)) = .727, 1.45 times too much.
    assert distance(arm_probabilities(trainee.policy), OPTIMUM) > 0.08


def load(directory: Path) -> LoadedPolicy:
    return load_policy(directory)


def weights_of(trainee: Trainable) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in trainee.model.state_dict().items()}


def test_before_the_first_step_policy_and_reference_agree_on_every_pair(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, minibatch_size=7, epochs=1)
    [metrics] = train_dpo(make_trainable(load(tiny_model_dir)), PAIRS, settings, 0)
    assert metrics["preference/margin"] == pytest.approx(0.0, abs=1e-5)
    assert metrics["preference/choices"] == 5
    assert metrics["preference/ties"] == 2
    # Both sides' response tokens: chosen 3 + at, rejected 4 + at, for at = 0..6: 7 * 7 + 2 * 21 = 91.
    assert metrics["tokens"] == 91


def test_microbatches_change_no_gradient(tiny_model_dir: Path) -> None:
    trained = []
    for tokens in (1, 10_000):
        trainee = make_trainable(load(tiny_model_dir))
        settings = msgspec.structs.replace(SMALL, microbatch_tokens=tokens, epochs=1, minibatch_size=7)
        [metrics] = train_dpo(trainee, PAIRS, settings, 0)
        trained.append(metrics)
    assert trained[0] == pytest.approx(trained[1], rel=1e-4, abs=1e-5)


def test_the_loss_falls_and_chosen_answers_gain_on_rejected_ones(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, epochs=10)
    history = train_dpo(make_trainable(load(tiny_model_dir)), PAIRS, settings, 0)
    assert len(history) == 30
    assert history[-1]["policy/loss"] < history[0]["policy/loss"]
    assert history[-1]["preference/accuracy"] == 1.0
    assert history[0]["policy/learning_rate"] == pytest.approx(1e-3 / 3)
    assert [each["step"] for each in history] == list(range(1, 31))


def test_a_training_that_is_resumed_ends_at_the_same_bits(tiny_model_dir: Path) -> None:
    whole = make_trainable(load(tiny_model_dir))
    kept: list[TrainingState] = []
    metrics = train_dpo(whole, PAIRS, SMALL, 3, Hooks(keep=kept.append, keep_every=2))
    assert [state.step for state in kept] == [2, 4, 6]
    resumed = make_trainable(load(tiny_model_dir))
    rest = train_dpo(resumed, PAIRS, SMALL, 3, Hooks(resume=kept[0]))
    assert rest == metrics[2:]
    for name, value in weights_of(whole).items():
        assert torch.equal(weights_of(resumed)[name], value), name


def test_the_same_seed_gives_the_same_bits_and_another_seed_others(tiny_model_dir: Path) -> None:
    runs = [train_dpo(make_trainable(load(tiny_model_dir)), PAIRS, SMALL, seed) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_an_adapter_learns_and_the_trunk_stays(tiny_model_dir: Path) -> None:
    trainee = make_trainable(load(tiny_model_dir), LoraSettings(rank=4))
    before = weights_of(trainee)
    settings = msgspec.structs.replace(SMALL, epochs=6, learning_rate=1e-2)
    history = train_dpo(trainee, PAIRS, settings, 0)
    assert history[-1]["preference/margin"] > 0.01
    after = weights_of(trainee)
    assert all(torch.equal(after[name], value) for name, value in before.items() if "lora" not in name)
    with trainee.reference() as reference:
        plain = load(tiny_model_dir).model
        tokens = torch.tensor([PAIRS[3].prompt_token_ids])
        torch.testing.assert_close(reference(tokens).logits, plain(tokens).logits)


@pytest.mark.parametrize(
    ("pairs", "weights", "said"),
    [
        ([], None, "0 pairs"),
        ([pair([1], [2], tie=True)], None, "all of them ties"),
        ([pair([1], [])], None, "empty prompt or answer"),
        ([pair([1], [2])], [1.0, 1.0], "1 judgements need a weight each"),
        ([pair([1], [2])], [-1.0], "the least -1"),
    ],
)
def test_what_teaches_nothing_is_refused(
    tiny_policy: LoadedPolicy, pairs: list[PreferencePair], weights: list[float] | None, said: str
) -> None:
    with pytest.raises(TrainingError, match=said):
        train_dpo(make_trainable(bandit_policy(tiny_policy)), pairs, SMALL, 0, weights=weights)


def test_a_number_that_is_not_finite_stops_the_training_and_names_itself(tiny_policy: LoadedPolicy) -> None:
    policy = bandit_policy(tiny_policy)
    trainee = make_trainable(policy)
    with torch.no_grad():
        policy.model.lm_head.weight[0] = float("nan")
    with pytest.raises(TrainingError, match="policy/loss is nan"):
        train_dpo(trainee, [pair([1], [2])], SMALL, 0)


def test_settings_out_of_bounds_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match="DPOSettings kl_coef is 0"):
        DPOSettings(kl_coef=0)
