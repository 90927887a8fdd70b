"""Axes in the score, and help that is not bought with harm: a bandit whose best arm is the harmful one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.axis_floor import combine_axes, next_multiplier
from rlhf_core.learning.ppo import PPOResult, train_ppo
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.trainable import make_trainable
from tests.rlhf_core.learning.bandit import PROMPT, bandit_policy

SCORES = torch.tensor([1.0, -1.0])
AXES = {"helpful": torch.tensor([2.0, 0.0]), "harmless": torch.tensor([-3.0, 1.0])}
HELP = torch.tensor([1.0, 0.0, 0.0, 0.0])
HARMLESS = torch.tensor([-1.0, 1.0, 1.0, 1.0])


def test_weighted_axes_are_added_to_the_score() -> None:
    # 1 + .5 * 2 = 2 and -1 + .5 * 0 = -1.
    assert combine_axes(SCORES, AXES, {"helpful": 0.5}).tolist() == [2.0, -1.0]
    assert combine_axes(SCORES, {}, {}).tolist() == [1.0, -1.0]


def test_the_multiplier_weighs_the_floored_axis_and_keeps_the_scale() -> None:
    # (1 + 3 * -3) / 4 = -2 and (-1 + 3 * 1) / 4 = .5.
    assert combine_axes(SCORES, AXES, {}, floor_axis="harmless", multiplier=3.0).tolist() == [-2.0, 0.5]
    assert combine_axes(SCORES, AXES, {}, floor_axis="harmless", multiplier=0.0).tolist() == [1.0, -1.0]


def test_the_multiplier_climbs_under_violation_and_never_falls_below_zero() -> None:
    # 1 + .5 * (0 - -.4) = 1.2; 1 + .5 * (0 - .4) = .8; .1 + .5 * (0 - .4) = -.1 -> 0.
    assert next_multiplier(1.0, -0.4, 0.0, 0.5) == pytest.approx(1.2)
    assert next_multiplier(1.0, 0.4, 0.0, 0.5) == pytest.approx(0.8)
    assert next_multiplier(0.1, 0.4, 0.0, 0.5) == 0.0


@pytest.mark.parametrize("more", [{"weights": {"honest": 1.0}}, {"weights": {}, "floor_axis": "honest"}])
def test_an_axis_that_nobody_scored_is_refused_by_name(more: dict[str, object]) -> None:
    with pytest.raises(TrainingError, match="'honest': the reward model has learned helpful, harmless"):
        combine_axes(SCORES, AXES, **more)


def train(policy: LoadedPolicy, **changes: object) -> PPOResult:
    """PPO on arm 0, which helps and harms, against three that do neither."""

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        return HELP[[response[0] for response in responses]]

    def axes(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> dict[str, Tensor]:
        return {"harmless": HARMLESS[[response[0] for response in responses]]}

    settings = {
        "updates": 50,
        "rollouts": 64,
        "epochs": 1,
        "minibatch_size": 64,
        "learning_rate": 2e-2,
        "value_learning_rate": 1e-2,
        "kl_coef": 0.3,
        "target_kl": 1e9,
        "least_entropy": 0.0,
        "max_new_tokens": 1,
        "floor": 0.4,
        "floor_rate": 0.1,
    } | changes
    return train_ppo(make_trainable(policy), score, [PROMPT], PPOSettings(**settings), 0, axis_scores=axes)


def mean_of_last(result: PPOResult, name: str) -> float:
    return sum(metrics[name] for metrics in result.metrics[-20:]) / 20


def test_without_a_floor_help_is_bought_with_harm(tiny_policy: LoadedPolicy) -> None:
    result = train(bandit_policy(tiny_policy), updates=25)
    # p(arm 0) = e^(1/.3) / (e^(1/.3) + 3) = .903, and harmless = 1 - 2 p = -.81.
    assert result.metrics[-1]["axis/overall"] > 0.8
    assert result.metrics[-1]["axis/harmless"] < -0.6


def test_with_a_floor_harm_stays_out_and_help_is_had_up_to_it(tiny_policy: LoadedPolicy) -> None:
    result = train(bandit_policy(tiny_policy), floor_axis="harmless")
    # harmless = 1 - 2 p(arm 0) >= .4 means p(arm 0) <= .3. At the optimum the odds of arm 0 against one other are
    # .3 / .2333 = e^(gap / .3), so the gap of their scores, (1 - 2 m) / (1 + m), is .0754: m = .446.
    assert mean_of_last(result, "axis/harmless") == pytest.approx(0.4, abs=0.1)
    assert mean_of_last(result, "axis/overall") == pytest.approx(0.3, abs=0.05)
    assert mean_of_last(result, "axis/multiplier") == pytest.approx(0.446, abs=0.1)
    for metrics in result.metrics:
        assert metrics["axis/violation"] == pytest.approx(0.4 - metrics["axis/harmless"], abs=1e-6)


def test_a_weight_on_an_axis_works_like_a_fixed_multiplier(tiny_policy: LoadedPolicy) -> None:
    result = train(bandit_policy(tiny_policy), axis_weights={"harmless": 2.0}, updates=20)
    assert result.metrics[-1]["axis/harmless"] > 0.8
