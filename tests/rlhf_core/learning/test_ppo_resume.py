"""A PPO run that is interrupted and goes on ends at the bits that it would have had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch

from rlhf_core.errors import CheckpointError
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.ppo import train_ppo
from rlhf_core.learning.ppo_metrics import Metrics
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.training_state import TrainingState, load_state, save_state
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable
from tests.rlhf_core.learning.test_ppo import PROMPTS, SMALL, low_tokens, untimed

# Everything that is carried along: an adaptive coefficient, a multiplier, and moments of both groups.
SETTINGS = msgspec.structs.replace(
    SMALL, updates=4, epochs=3, kl_target=1.0, kl_horizon=100.0, floor_axis="short", floor=0.5, critic_warmup_updates=1
)
LORA = LoraSettings(rank=4, alpha=8.0)
Load = Callable[[], LoadedPolicy]


@pytest.fixture
def load(tiny_model_dir: Path) -> Load:
    return lambda: load_policy(tiny_model_dir)


def short(prompts: Any, responses: Any) -> dict[str, torch.Tensor]:
    return {"short": torch.tensor([1.0 - len(response) / 4 for response in responses])}


def train(trainee: Trainable, hooks: Hooks, settings: PPOSettings = SETTINGS) -> list[Metrics]:
    return train_ppo(trainee, low_tokens, PROMPTS, settings, 7, hooks=hooks, axis_scores=short).metrics


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_two_updates_and_two_more_are_four(load: Load, lora: LoraSettings | None, tmp_path: Path) -> None:
    states: list[TrainingState] = []
    whole = make_trainable(load(), lora)
    metrics = train(whole, Hooks(keep=states.append))
    assert [state.step for state in states] == [1, 2, 3, 4]
    save_state(states[1], tmp_path / "state")
    later: list[TrainingState] = []
    resumed = make_trainable(load(), lora)
    rest = train(resumed, Hooks(resume=load_state(tmp_path / "state"), keep=later.append))
    assert untimed(rest) == untimed(metrics[2:])
    # Weights, moments and value head, and the numbers beside them.
    assert later[-1].tensors.keys() == states[-1].tensors.keys()
    for name, tensor in states[-1].tensors.items():
        assert torch.equal(later[-1].tensors[name], tensor), name
    assert later[-1].numbers == states[-1].numbers
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], tensor), name
    # None of it was idle.
    assert metrics[0]["axis/multiplier"] == 0.0
    assert metrics[2]["axis/multiplier"] > 0.0
    assert metrics[3]["objective/kl_coef"] != metrics[2]["objective/kl_coef"]
    assert metrics[3]["objective/kl_k3"] > 0.0


def test_a_run_that_forgets_its_moments_ends_elsewhere(load: Load) -> None:
    states: list[TrainingState] = []
    metrics = train(make_trainable(load()), Hooks(keep=states.append))
    kept = {name: value for name, value in states[1].tensors.items() if not name.startswith("optimizer/")}
    forgetful = TrainingState(states[1].step, kept, states[1].numbers)
    assert untimed(train(make_trainable(load()), Hooks(resume=forgetful))) != untimed(metrics[2:])


def test_the_state_of_another_kind_of_training_is_refused(load: Load) -> None:
    states: list[TrainingState] = []
    train(make_trainable(load()), Hooks(keep=states.append), msgspec.structs.replace(SETTINGS, updates=1))
    with pytest.raises(CheckpointError, match="another model"):
        train(make_trainable(load(), LORA), Hooks(resume=states[0]))


def test_states_are_kept_as_often_as_asked(load: Load) -> None:
    steps: list[int] = []
    train(make_trainable(load()), Hooks(keep=lambda state: steps.append(state.step), keep_every=3))
    assert steps == [3]
