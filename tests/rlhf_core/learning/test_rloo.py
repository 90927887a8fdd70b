"""RLOO and GRPO: their known optimum on a bandit, and what must hold in every update. Everything real but the language.

The gradient's expectation is checked by enumeration in test_policy_losses.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.alternatives_settings import GRPO, RLOOSettings
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.rloo import baseline_advantages, rows_that_tell, train_rloo
from rlhf_core.learning.training_state import TrainingState
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable
from tests.rlhf_core.learning.bandit import (
    KL_COEF,
    OPTIMUM,
    PROMPT,
    UNIFORM,
    arm_probabilities,
    arm_scores,
    bandit_policy,
    distance,
)

FREE = {"target_kl": 1e9, "kl_budget": 1e9, "missing_end_penalty": 0.0, "score_clip": 1e9}
BANDIT = RLOOSettings(
    updates=30,
    rollouts=128,
    minibatch_size=128,
    learning_rate=2e-2,
    kl_coef=KL_COEF,
    max_new_tokens=1,
    sampler_slots=128,
    **FREE,
)
SMALL = RLOOSettings(
    updates=2, rollouts=12, minibatch_size=4, max_new_tokens=8, learning_rate=1e-3, microbatch_tokens=64, **FREE
)
PROMPTS = [tuple(range(5 + start, 5 + start + length)) for start, length in enumerate((1, 4, 2, 9, 6, 3, 12, 5))]


def low_tokens(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    """A score that any response can improve: the share of tokens below 100, around zero."""
    return torch.tensor([sum(token < 100 for token in response) / len(response) - 0.3 for response in responses])


def constant(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.ones(len(responses))


@pytest.fixture
def bandit(tiny_policy: LoadedPolicy) -> Trainable:
    return make_trainable(bandit_policy(tiny_policy))


def train(trainee: Trainable, seed: int = 0, **changes: object) -> list[Metrics]:
    return train_rloo(trainee, arm_scores, [PROMPT], msgspec.structs.replace(BANDIT, **changes), seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bandit_ends_at_its_closed_form_optimum(bandit: Trainable, seed: int) -> None:
    metrics = train(bandit, seed)
    assert distance(arm_probabilities(bandit.policy), OPTIMUM) < 0.03
    # The best attainable objective is .5 log(11.4753 / 4) = .5269.
    assert metrics[-1]["objective/rlhf_reward"] == pytest.approx(0.5269, abs=0.02)


def test_the_kl_as_a_loss_ends_there_too(bandit: Trainable) -> None:
    # Groups of 8 with their own mean have 7/8 of the gradient, so that a KL loss of 7/8 of .5 weighs .5.
    train(bandit, group_size=8, baseline="group_mean", ratio="token", kl_in="loss", kl_coef=KL_COEF * 7 / 8)
    assert distance(arm_probabilities(bandit.policy), OPTIMUM) < 0.03


def test_without_a_kl_the_best_arm_takes_all(bandit: Trainable) -> None:
    # What a forgotten reference would look like: the bandit's optimum is then missed by far.
    train(bandit, kl_coef=0.0)
    assert distance(arm_probabilities(bandit.policy), OPTIMUM) > 0.2


def test_grpo_puts_the_best_arm_on_top(bandit: Trainable) -> None:
    settings = msgspec.structs.replace(
        GRPO, updates=20, rollouts=128, minibatch_size=128, learning_rate=1e-2, max_new_tokens=1, **FREE
    )
    metrics = train_rloo(bandit, arm_scores, [PROMPT], settings, 0)
    assert arm_probabilities(bandit.policy).argmax() == 0
    assert float(arm_probabilities(bandit.policy)[0]) > 0.8
    assert metrics[-1]["rollout/telling_share"] < 1.0


@pytest.mark.parametrize("settings", [BANDIT, msgspec.structs.replace(GRPO, **FREE)], ids=["rloo", "grpo"])
def test_a_constant_score_moves_nothing(bandit: Trainable, settings: RLOOSettings) -> None:
    short = msgspec.structs.replace(settings, updates=5, rollouts=64, max_new_tokens=1, learning_rate=1e-2)
    train_rloo(bandit, constant, [PROMPT], short, 0)
    assert distance(arm_probabilities(bandit.policy), UNIFORM) < 1e-3


def test_groups_that_teach_nothing_are_skipped_only_where_their_spread_is_divided_by() -> None:
    scores = torch.tensor([1.0, 1.0, 0.0, 2.0])
    plain = RLOOSettings(group_size=2)
    assert rows_that_tell(scores, plain) == [0, 1, 2, 3]
    normalised = msgspec.structs.replace(plain, baseline="group_normalised")
    assert rows_that_tell(scores, normalised) == [2, 3]
    # 0 and 2: less the other; less the mean 1; over the standard deviation 1.
    rewards = scores.view(2, 2)
    assert baseline_advantages(rewards, plain).tolist() == [[0, 0], [-2, 2]]
    assert baseline_advantages(rewards, normalised).tolist() == [[0, 0], [-1, 1]]


@pytest.mark.parametrize("settings", [SMALL, msgspec.structs.replace(SMALL, ratio="token", kl_in="loss")])
def test_before_the_first_step_every_ratio_is_one_and_the_policy_its_reference(
    tiny_model_dir: Path, settings: RLOOSettings
) -> None:
    metrics = train_rloo(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert metrics[0]["policy/ratio_first_minibatch"] == 0.0
    assert metrics[0]["objective/kl_seq"] == 0.0
    assert metrics[1]["objective/kl_k3"] > 0.0
    assert metrics[0]["policy/steps"] == 3
    assert metrics[0]["rollout/logprob_gap_max"] < 1e-4


def test_the_score_climbs(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(
        SMALL, updates=8, rollouts=48, minibatch_size=48, learning_rate=3e-2, kl_coef=0.0
    )
    metrics = train_rloo(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert metrics[-1]["objective/score"] > metrics[0]["objective/score"] + 0.15


def test_an_adapter_learns_against_its_trunk(tiny_model_dir: Path) -> None:
    trainee = make_trainable(load_policy(tiny_model_dir), LoraSettings(rank=4))
    settings = msgspec.structs.replace(SMALL, updates=3, learning_rate=1e-2)
    metrics = train_rloo(trainee, low_tokens, PROMPTS, settings, 0)
    assert metrics[0]["objective/kl_seq"] == 0.0
    assert metrics[-1]["objective/kl_k3"] > 1e-4


def test_a_far_policy_ends_the_training_before_it_learns_more(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, updates=6, learning_rate=1e-2, kl_budget=0.05)
    metrics = train_rloo(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert len(metrics) < 6
    assert metrics[-1]["stopped"] == 1.0
    assert metrics[-1]["objective/kl_seq"] > 0.05
    assert "policy/loss" not in metrics[-1]


def test_an_update_that_drifts_too_far_ends_early(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, epochs=4, target_kl=1e-6)
    metrics = train_rloo(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert metrics[0]["policy/early_stop"] == 1.0
    assert metrics[0]["policy/steps"] < 12


def untimed(metrics: list[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in one.items() if not name.startswith("time/")} for one in metrics]


def test_a_training_that_is_resumed_ends_at_the_same_bits(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, updates=4, epochs=2)
    whole, kept = make_trainable(load_policy(tiny_model_dir)), list[TrainingState]()
    metrics = train_rloo(whole, low_tokens, PROMPTS, settings, 3, Hooks(keep=kept.append))
    resumed = make_trainable(load_policy(tiny_model_dir))
    rest = train_rloo(resumed, low_tokens, PROMPTS, settings, 3, Hooks(resume=kept[1]))
    assert untimed(rest) == untimed(metrics[2:])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_no_prompt_and_no_finite_score_are_refused(tiny_model_dir: Path) -> None:
    trainee = make_trainable(load_policy(tiny_model_dir))
    with pytest.raises(TrainingError, match="not 0 with some empty"):
        train_rloo(trainee, low_tokens, [], SMALL, 0)
    with pytest.raises(TrainingError, match="12 of 12 scores are not finite"):
        train_rloo(trainee, lambda p, r: torch.full((len(r),), float("nan")), PROMPTS, SMALL, 0)


def test_a_drawn_group_shares_its_prompt(tiny_model_dir: Path) -> None:
    seen: list[Sequence[tuple[int, ...]]] = []

    def watching(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        seen.append(prompts)
        return low_tokens(prompts, responses)

    train_rloo(make_trainable(load_policy(tiny_model_dir)), watching, PROMPTS, SMALL, 0)
    for prompts in seen:
        assert all(len(set(prompts[at : at + 4])) == 1 for at in range(0, 12, 4))
    # Two updates take six of the eight prompts, none of them twice.
    assert len({prompt for prompts in seen for prompt in prompts}) == 6
