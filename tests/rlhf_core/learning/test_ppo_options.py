"""What PPO can do besides: adapters, bfloat16, a judge, demonstrations, an entropy bonus; and its reported sizes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.devices import Compute, Devices
from rlhf_core.learning.ppo import train_ppo
from rlhf_core.learning.ppo_metrics import METRICS
from rlhf_core.models.load import load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import make_trainable
from tests.rlhf_core.learning.test_ppo import PROMPTS, SMALL, Load, low_tokens, run, untimed


@pytest.fixture
def load(tiny_model_dir: Path) -> Load:
    """A fresh copy of the tiny policy, free to be trained."""
    return lambda: load_policy(tiny_model_dir)


LORA = LoraSettings(rank=4, alpha=8.0)


@pytest.mark.parametrize("compute", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_the_first_ratios_are_exactly_one_and_the_first_kl_exactly_zero(
    load: Load, compute: Compute, lora: LoraSettings | None
) -> None:
    trainee = make_trainable(load(), lora, compute=compute)
    settings = msgspec.structs.replace(SMALL, microbatch_tokens=40, learning_rate=3e-3)
    result = train_ppo(trainee, low_tokens, PROMPTS, settings, 0, devices=Devices(compute, "cpu"))
    # Measured and trained in the same microbatches: not one bit differs, in any precision.
    assert [metrics["policy/ratio_first_minibatch"] for metrics in result.metrics] == [0.0, 0.0]
    assert result.metrics[0]["objective/kl_seq"] == 0.0
    assert result.metrics[1]["objective/kl_k3"] > 0.0
    assert result.metrics[0]["rollout/logprob_gap_mean"] < (1e-5 if compute == "float32" else 0.05)


def test_with_lora_the_terms_learn_and_the_trunk_does_not(load: Load) -> None:
    trainee = make_trainable(load(), LORA)
    settings = msgspec.structs.replace(SMALL, updates=10, rollouts=64, minibatch_size=32, learning_rate=3e-2)
    result = train_ppo(trainee, low_tokens, PROMPTS, settings, 0)
    assert result.metrics[-1]["objective/score"] > result.metrics[0]["objective/score"] + 0.1
    weights = trainee.model.state_dict()
    for name, weight in load().model.state_dict().items():
        module, _, kind = name.rpartition(".")
        assert torch.equal(weights.get(name, weights.get(f"{module}.base_layer.{kind}")), weight), name


def test_rollouts_do_not_depend_on_the_batch_around_them(load: Load) -> None:
    # One slot or many, the same seeds draw the same tokens.
    drawn = []
    for slots in (1, 12):
        _, result = run(load, msgspec.structs.replace(SMALL, updates=1, sampler_slots=slots))
        drawn.append(untimed(result.metrics)[0])
    assert drawn[0] == pytest.approx(drawn[1], abs=1e-4)
    assert drawn[0]["objective/score"] == drawn[1]["objective/score"]


def test_every_prompt_comes_once_before_any_comes_again(load: Load) -> None:
    seen: list[tuple[int, ...]] = []

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        seen.extend(prompts)
        return low_tokens(prompts, responses)

    train_ppo(make_trainable(load()), score, PROMPTS, SMALL, 0)
    assert sorted(seen[:8]) == sorted(seen[8:16]) == sorted(PROMPTS)
    assert seen[:8] != seen[8:16]


def test_a_served_policy_and_a_judge_are_reported_beside(load: Load) -> None:
    served = load().model
    _, result = run(load, served=served, judge=lambda p, r: -low_tokens(p, r))
    assert set(result.metrics[0]) == set(METRICS) | {"objective/kl_to_served", "objective/judge_score"}
    for metrics in result.metrics:  # the served policy is also the one that training started from
        assert metrics["objective/kl_to_served"] == pytest.approx(metrics["objective/kl_seq"], abs=1e-6)
        assert metrics["objective/judge_score"] == pytest.approx(-metrics["objective/score"], abs=1e-6)


def test_demonstrations_are_learned_beside_the_score(load: Load) -> None:
    demonstrations = [((5, 6), (40 + number, 50, 1)) for number in range(6)]
    settings = msgspec.structs.replace(SMALL, updates=6, learning_rate=3e-3, demonstration_coef=1.0)
    _, result = run(load, settings, demonstrations=demonstrations)
    losses = [metrics["policy/demonstration_loss"] for metrics in result.metrics]
    assert losses[-1] < losses[0] - 1.0


def test_an_entropy_bonus_raises_the_entropy(load: Load) -> None:
    settings = msgspec.structs.replace(SMALL, updates=5, learning_rate=3e-3, missing_end_penalty=0.0)
    plain, bonus = (
        run(load, msgspec.structs.replace(settings, entropy_coef=coef))[1].metrics[-1]["objective/entropy"]
        for coef in (0.0, 1.0)
    )
    assert bonus > plain + 0.2


def test_the_last_step_is_reported_with_the_size_that_it_had(load: Load) -> None:
    # With one minibatch there is one step: what it changed is the distance of the weights before and after.
    settings = msgspec.structs.replace(SMALL, updates=1, epochs=1, minibatch_size=12)
    trainee, result = run(load, settings)
    before, after = (
        torch.cat([each.flatten() for each in model.parameters()]) for model in (load().model, trainee.model)
    )
    assert result.metrics[0]["policy/update_norm"] == pytest.approx(float((after - before).detach().norm()), rel=1e-3)
    assert result.metrics[0]["policy/weight_norm"] == pytest.approx(float(after.detach().norm()), rel=1e-5)


def test_a_policy_that_is_not_where_its_reference_is_stops_the_run(load: Load) -> None:
    trainee = make_trainable(load())
    assert trainee.frozen is not None
    with torch.no_grad():
        trainee.frozen.lm_head.weight.mul_(1.01)
    with pytest.raises(TrainingError, match=r"differ from its reference's by up to 0\.\d+"):
        train_ppo(trainee, low_tokens, PROMPTS, SMALL, 0)
