"""Training states: a loop that goes on from one computes the bits that it would have computed."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from rlhf_core.errors import CheckpointError
from rlhf_core.learning.training_state import capture, has_state, load_state, restore, save_state


class Toy:
    """A model, an optimizer with two groups, and a random state, trained on noise."""

    def __init__(self, width: int = 3) -> None:
        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, 1))
        self.head = nn.Linear(width, 1)
        self.model[0].bias.requires_grad_(False)
        groups = [
            {"params": [each for each in self.model.parameters() if each.requires_grad], "lr": 0.1},
            {"params": list(self.head.parameters()), "lr": 0.01},
        ]
        self.optimizer = torch.optim.AdamW(groups)
        self.random = random.Random(5)
        self.width = width

    @property
    def modules(self) -> dict[str, nn.Module]:
        return {"policy": self.model, "head": self.head}

    def step(self) -> None:
        row = torch.tensor([[self.random.gauss(0, 1) for _ in range(self.width)]])
        (self.model(row) + self.head(row)).square().sum().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for group in self.optimizer.param_groups:
            group["lr"] *= 0.9

    def weights(self) -> list[torch.Tensor]:
        return [each.detach().clone() for module in self.modules.values() for each in module.parameters()]


def same(left: list[torch.Tensor], right: list[torch.Tensor]) -> bool:
    return all(torch.equal(one, other) for one, other in zip(left, right, strict=True))


def test_a_state_that_went_through_files_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    toy = Toy()
    for _ in range(3):
        toy.step()
    state = capture(3, toy.modules, toy.optimizer, randoms={"data": toy.random}, numbers={"kl_coef": 0.1})
    save_state(state, tmp_path / "state")
    for _ in range(3):
        toy.step()
    again, loaded = Toy(), load_state(tmp_path / "state")
    restore(loaded, again.modules, again.optimizer, randoms={"data": again.random})
    assert (loaded.step, loaded.numbers["kl_coef"]) == (3, 0.1)
    for _ in range(3):
        again.step()
    assert same(again.weights(), toy.weights())


def test_without_moments_or_random_state_it_would_go_on_otherwise(tmp_path: Path) -> None:
    toy = Toy()
    for _ in range(3):
        toy.step()
    state = capture(3, toy.modules, toy.optimizer, randoms={"data": toy.random})
    toy.step()
    bare = {name: value for name, value in state.tensors.items() if not name.startswith("optimizer/")}
    assert len(bare) < len(state.tensors)
    forgetful = Toy()
    restore(state, forgetful.modules, forgetful.optimizer)  # its own random state
    forgetful.step()
    assert not same(forgetful.weights(), toy.weights())


def test_going_on_from_a_state_leaves_the_state_as_it_was() -> None:
    toy = Toy()
    toy.step()
    state = capture(1, toy.modules, toy.optimizer)
    before = {name: value.clone() for name, value in state.tensors.items()}
    again = Toy()
    restore(state, again.modules, again.optimizer)
    again.step()
    assert all(torch.equal(state.tensors[name], value) for name, value in before.items())


def test_what_does_not_learn_is_not_kept_and_later_steps_do_not_change_what_was() -> None:
    toy = Toy()
    state = capture(1, toy.modules, toy.optimizer)
    assert "policy/0.bias" not in state.tensors
    before = state.tensors["policy/0.weight"].clone()
    toy.step()
    assert torch.equal(state.tensors["policy/0.weight"], before)


def test_a_state_of_another_model_is_refused_by_what_differs() -> None:
    toy, wider = Toy(), Toy(width=5)
    state = capture(1, toy.modules, toy.optimizer)
    with pytest.raises(CheckpointError, match=r"policy/0\.weight has shape \(4, 3\), not \(4, 5\)"):
        restore(state, wider.modules, wider.optimizer)
    with pytest.raises(CheckpointError, match="they differ in 2 tensors, such as head/bias"):
        restore(state, {"policy": toy.model}, toy.optimizer)
    with pytest.raises(CheckpointError, match="has no random state 'data'"):
        restore(state, toy.modules, toy.optimizer, randoms={"data": toy.random})


def test_a_save_that_a_kill_cut_short_leaves_the_state_before(tmp_path: Path) -> None:
    toy = Toy()
    directory = tmp_path / "state"
    assert not has_state(directory)
    save_state(capture(1, toy.modules, toy.optimizer), directory)
    # Killed while the next one was being written aside, and killed between the two renames.
    (tmp_path / ".state.tmp").mkdir()
    assert load_state(directory).step == 1
    directory.rename(tmp_path / ".state.old")
    assert has_state(directory)
    assert load_state(directory).step == 1
    save_state(capture(2, toy.modules, toy.optimizer), directory)
    assert load_state(directory).step == 2
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_what_is_no_state_is_refused_by_name(tmp_path: Path) -> None:
    toy = Toy()
    with pytest.raises(CheckpointError, match="holds no training state"):
        load_state(tmp_path / "nothing")
    save_state(capture(1, toy.modules, toy.optimizer), tmp_path / "state")
    (tmp_path / "state" / "state.safetensors").write_bytes(b"cut")
    with pytest.raises(CheckpointError, match="holds no training state"):
        load_state(tmp_path / "state")
    shutil.rmtree(tmp_path / "state")
