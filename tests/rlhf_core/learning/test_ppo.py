"""Exact invariants of the PPO loop on a tiny real model and the real engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from rlhf_core.engine.engine import Engine
from rlhf_core.errors import SettingsError, TrainingError
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.masked import masked_mean
from rlhf_core.learning.ppo import PPOResult, ScoreFunction, train_ppo
from rlhf_core.learning.ppo_metrics import METRICS, Metrics
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.ppo_update import Learner
from rlhf_core.learning.rollouts import Rollouts, measure, sample
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.trainable import Trainable, make_trainable
from rlhf_core.models.value import ValueHead
from rlhf_core.records import Sampling

PROMPTS = [tuple(range(5 + start, 5 + start + length)) for start, length in enumerate((1, 4, 2, 9, 6, 3, 12, 5))]
SMALL = PPOSettings(
    updates=2,
    rollouts=12,
    minibatch_size=4,
    max_new_tokens=8,
    learning_rate=1e-3,
    target_kl=1.0,
    kl_budget=1e3,
    least_end_rate=0.0,
    shortest=0.0,
    longest=1e9,
)

Load = Callable[[], LoadedPolicy]


@pytest.fixture
def load(tiny_model_dir: Path) -> Load:
    """A fresh copy of the tiny policy, free to be trained."""
    return lambda: load_policy(tiny_model_dir)


def low_tokens(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    """A score that any response can improve: the share of tokens below 100, around zero."""
    return torch.tensor([sum(token < 100 for token in response) / len(response) - 0.3 for response in responses])


def run(load: Load, settings: PPOSettings = SMALL, seed: int = 0, **more: Any) -> tuple[Trainable, PPOResult]:
    trainee = make_trainable(load())
    return trainee, train_ppo(trainee, low_tokens, PROMPTS, settings, seed, **more)


def untimed(metrics: list[Metrics]) -> list[Metrics]:
    """Without what measures the machine."""
    return [
        {name: value for name, value in one.items() if not name.startswith(("time/", "mem/")) and "_per_s" not in name}
        for one in metrics
    ]


def rollouts_of(trainee: Trainable, settings: PPOSettings) -> Rollouts:
    engine = Engine(trainee.policy, max_running=4, max_waiting=16, max_context=64)
    sampling = Sampling(temperature=settings.temperature, max_tokens=8)
    responses = sample(engine, PROMPTS, sampling)
    scores = low_tokens(PROMPTS, [one.token_ids for one in responses])
    return measure(responses, scores, trainee, ValueHead(32), settings, 0.05)


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_before_the_first_step_every_ratio_is_one(load: Load, temperature: float) -> None:
    trainee, settings = make_trainable(load()), PPOSettings(temperature=temperature, microbatch_tokens=40)
    rollouts = rollouts_of(trainee, settings)
    learner = Learner(trainee, ValueHead(32), settings)
    stats = learner.accumulate(rollouts, [6, 1, 3])
    assert stats["policy/ratio_gap"] < 1e-5
    assert stats["policy/approx_kl"] == pytest.approx(0.0, abs=1e-9)
    assert stats["policy/clip_fraction"] == 0.0
    rows = torch.tensor([6, 1, 3])
    weighted = (rollouts.advantages * rollouts.weights)[rows]
    expected = -masked_mean(weighted, rollouts.batch.response_mask[rows])
    assert stats["policy/loss"] == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("mistake", ["temperature forgotten", "weights moved"])
def test_a_trainer_unlike_the_sampler_shows_in_the_first_ratios(load: Load, mistake: str) -> None:
    trainee, settings = make_trainable(load()), PPOSettings(temperature=0.7)
    policy = trainee.policy
    rollouts = rollouts_of(trainee, settings)
    if mistake == "temperature forgotten":
        settings = PPOSettings(temperature=1.0)
    else:
        with torch.no_grad():
            policy.model.lm_head.weight.mul_(1.01)
    learner = Learner(trainee, ValueHead(32), settings)
    torch.manual_seed(0)
    assert learner.accumulate(rollouts, [6, 1, 3])["policy/ratio_gap"] > 1e-3


def test_dropout_is_off_however_the_policy_comes(load: Load) -> None:
    policy = load()
    for layer in policy.model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    policy.model.train()
    result = train_ppo(make_trainable(policy), low_tokens, PROMPTS, SMALL, 0)
    assert result.metrics[0]["policy/ratio_first_minibatch"] < 1e-5


def test_a_learning_rate_of_zero_leaves_every_bit_and_every_ratio(load: Load) -> None:
    settings = msgspec.structs.replace(SMALL, learning_rate=0.0, value_learning_rate=0.0, epochs=3)
    trainee, result = run(load, settings)
    for name, weight in load().model.state_dict().items():
        assert torch.equal(trainee.model.state_dict()[name], weight), name
    for metrics in result.metrics:
        assert metrics["policy/steps"] == 9  # 3 epochs of 12 / 4 minibatches
        assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
        assert metrics["policy/clip_fraction"] == 0.0
        assert metrics["objective/kl_seq"] == 0.0
        assert metrics["value/mean"] == 0.0


def test_training_raises_the_score_and_leaves_the_reference_alone(load: Load) -> None:
    reference = load()
    settings = msgspec.structs.replace(SMALL, updates=10, rollouts=64, minibatch_size=32, learning_rate=1e-2)
    result = train_ppo(make_trainable(load(), reference=reference), low_tokens, PROMPTS, settings, 0)
    assert result.metrics[-1]["objective/score"] > result.metrics[0]["objective/score"] + 0.1
    assert result.metrics[0]["objective/kl_seq"] == 0.0
    assert result.metrics[-1]["objective/kl_k3"] > 0.0
    for name, weight in load().model.state_dict().items():
        assert torch.equal(reference.model.state_dict()[name], weight), name
    assert result.metrics[-1]["value/mean"] != 0.0


def test_the_same_seed_gives_the_same_weights_and_metrics(load: Load) -> None:
    (one, first), (two, second), (_, other) = run(load), run(load), run(load, seed=1)
    assert untimed(first.metrics) == untimed(second.metrics)
    assert untimed(first.metrics) != untimed(other.metrics)
    for name, weight in one.model.state_dict().items():
        assert torch.equal(two.model.state_dict()[name], weight), name


@pytest.mark.parametrize("microbatch_tokens", [1, 40])
def test_microbatches_do_not_change_the_gradient(load: Load, microbatch_tokens: int) -> None:
    trainee = make_trainable(load())
    policy, rollouts = trainee.policy, rollouts_of(trainee, SMALL)
    with torch.no_grad():  # away from the sampling policy, so ratios, clips and values take part
        policy.model.lm_head.weight.mul_(1.1)
    found = []
    for tokens in (100_000, microbatch_tokens):
        head = ValueHead(32)
        learner = Learner(trainee, head, msgspec.structs.replace(SMALL, microbatch_tokens=tokens))
        policy.model.zero_grad()
        stats = learner.accumulate(rollouts, range(len(PROMPTS)))
        found.append((stats, gradients(policy.model) + gradients(head)))
    (stats, whole), (cut_stats, cut) = found
    assert cut_stats == pytest.approx(stats, abs=1e-4)
    assert stats["policy/clip_fraction"] > 0
    for ours, theirs in zip(cut, whole, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_every_update_reports_every_documented_name_and_no_other(load: Load) -> None:
    _, result = run(load)
    assert [metrics["step"] for metrics in result.metrics] == [1.0, 2.0]
    for metrics in result.metrics:
        assert set(metrics) == set(METRICS)
        assert all(isinstance(value, float) for value in metrics.values())


def test_the_learning_rate_falls_linearly_within_the_cycle(load: Load) -> None:
    _, result = run(load, msgspec.structs.replace(SMALL, updates=4))
    rates = [metrics["policy/learning_rate"] for metrics in result.metrics]
    assert rates == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_an_update_stops_early_when_the_policy_has_moved_too_far(load: Load) -> None:
    settings = msgspec.structs.replace(SMALL, target_kl=1e-6, learning_rate=1e-2, epochs=4)
    _, result = run(load, settings)
    assert result.metrics[0]["policy/early_stop"] == 1.0
    assert result.metrics[0]["policy/steps"] == 1.0  # the first step is always from where it sampled


def test_an_update_leaves_no_gradient_behind(load: Load) -> None:
    for settings in (SMALL, msgspec.structs.replace(SMALL, target_kl=1e-6, learning_rate=1e-2)):
        policy, result = run(load, settings)
        assert not gradients(policy.model)
        assert not gradients(result.value_head)


def test_the_cycle_stops_when_the_kl_budget_is_spent(load: Load) -> None:
    settings = msgspec.structs.replace(SMALL, kl_budget=1e-6, learning_rate=1e-2, updates=5)
    _, result = run(load, settings)
    assert [metrics["stopped"] for metrics in result.metrics] == [0.0, 1.0]
    assert result.metrics[1]["policy/steps"] == 0.0
    assert result.metrics[1]["stop/kl_budget"] == 1.0
    assert result.stopped.endswith("nats from the reference (budget 1e-06)")


def test_critic_warmup_trains_values_and_not_the_policy(load: Load) -> None:
    trainee, result = run(load, msgspec.structs.replace(SMALL, critic_warmup_updates=2))
    for name, weight in load().model.state_dict().items():
        assert torch.equal(trainee.model.state_dict()[name], weight), name
    assert result.value_head.linear.weight.detach().abs().sum() > 0
    assert result.metrics[0]["value/grad_norm"] > 0


def test_an_adaptive_coefficient_follows_the_kl(load: Load) -> None:
    # No KL before the first update: error clipped to -.2, over 12 of 120 responses: .05 * (1 - .2 * .1) =
    # .049.
    _, result = run(load, msgspec.structs.replace(SMALL, kl_target=6.0, kl_horizon=120.0))
    assert [m["objective/kl_coef"] for m in result.metrics] == pytest.approx([0.05, 0.049])


def test_progress_is_told_in_order_and_ends_at_one(load: Load) -> None:
    told: list[tuple[str, float]] = []
    run(load, hooks=Hooks(progress=lambda stage, share: told.append((stage, share))))
    assert told == [
        ("rollouts 1/2", 0.0),
        ("update 1/2", 0.25),
        ("rollouts 2/2", 0.5),
        ("update 2/2", 0.75),
        ("done", 1.0),
    ]


def test_what_cannot_train_is_refused(load: Load) -> None:
    def attempt(score: ScoreFunction = low_tokens, prompts: Any = PROMPTS, **changes: Any) -> None:
        more = {name: changes.pop(name) for name in ("demonstrations", "axis_scores") if name in changes}
        train_ppo(make_trainable(load()), score, prompts, msgspec.structs.replace(SMALL, **changes), 0, **more)

    with pytest.raises(TrainingError, match="prompts"):
        attempt(prompts=[])
    with pytest.raises(TrainingError, match="12 of 12 scores are not finite"):
        attempt(lambda p, r: torch.full((len(r),), torch.nan))
    with pytest.raises(TrainingError, match="shape"):
        attempt(lambda p, r: torch.zeros(3))
    with pytest.raises(TrainingError, match=r"demonstration_coef of 0\.1"):
        attempt(demonstration_coef=0.1)
    with pytest.raises(TrainingError, match="1 demonstrations"):
        attempt(demonstrations=[((5,), (6, 1))])
    with pytest.raises(TrainingError, match="axis 'harmless'"):
        attempt(floor_axis="harmless")
    with pytest.raises(TrainingError, match="axis 'harmless': the reward model has learned helpful"):
        attempt(axis_weights={"harmless": 1.0}, axis_scores=lambda p, r: {"helpful": torch.zeros(len(r))})


def test_a_loss_that_is_not_finite_stops_the_training_before_the_step(load: Load) -> None:
    trainee = make_trainable(load())
    policy, rollouts = trainee.policy, rollouts_of(trainee, SMALL)
    broken = dataclasses.replace(rollouts, advantages=rollouts.advantages * torch.inf)
    before = {name: weight.clone() for name, weight in policy.model.state_dict().items()}
    learner = Learner(trainee, ValueHead(32), SMALL)
    with pytest.raises(TrainingError, match=r"policy/loss is"):
        learner.improve(broken, 0)
    assert all(torch.equal(policy.model.state_dict()[name], weight) for name, weight in before.items())


def test_settings_out_of_bounds_are_refused_by_name() -> None:
    with pytest.raises(SettingsError, match=r"clip_range is -0\.1"):
        PPOSettings(clip_range=-0.1)
    with pytest.raises(SettingsError, match="updates is 0"):
        PPOSettings(updates=0)
