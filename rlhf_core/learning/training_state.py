"""Everything that a training carries from one optimizer step to the next, as files: it goes on to the same bits.

A state is tensors (what learns, and the optimizer's moments) and JSON (counters, coefficients, random states). It is
written aside and renamed, so that a reader sees a whole one or the one before. Nothing is pickled.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rlhf_core.errors import CheckpointError

TENSORS: Final = "state.safetensors"
NUMBERS: Final = "state.json"


@dataclass(frozen=True, eq=False)
class TrainingState:
    """A moment between two steps. `step` counts what the loop counts: updates, or optimizer steps."""

    step: int
    tensors: dict[str, Tensor]
    numbers: dict[str, Any] = field(default_factory=dict)
    """JSON: `randoms` by name, the optimizer's groups, and what the loop adds."""


def capture(
    step: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    randoms: Mapping[str, random.Random] | None = None,
    numbers: Mapping[str, Any] | None = None,
) -> TrainingState:
    """A copy of the trainable parameters of `modules`, the optimizer's state, the random states and `numbers`."""
    tensors = {f"{name}/{key}": value.detach().clone() for name, key, value in _trainable(modules)}
    state = optimizer.state_dict()
    for index, moments in state["state"].items():
        tensors |= {f"optimizer/{index}/{key}": torch.as_tensor(value).clone() for key, value in moments.items()}
    return TrainingState(
        step,
        tensors,
        {
            **(numbers or {}),
            "randoms": {name: each.getstate() for name, each in (randoms or {}).items()},
            "learning_rates": [group["lr"] for group in state["param_groups"]],
        },
    )


def restore(
    state: TrainingState,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    *,
    randoms: Mapping[str, random.Random] | None = None,
) -> None:
    """Put a captured state back. Raises CheckpointError when it is of another model or another set of randoms."""
    expected = {f"{name}/{key}": value for name, key, value in _trainable(modules)}
    held = {key for key in state.tensors if not key.startswith("optimizer/")}
    if held != set(expected):
        odd = sorted(held ^ set(expected))
        raise CheckpointError(
            f"the saved state is of another model: they differ in {len(odd)} tensors, such as {odd[0]}"
        )
    with torch.no_grad():
        for key, parameter in expected.items():
            if state.tensors[key].shape != parameter.shape:
                shapes = f"{tuple(state.tensors[key].shape)}, not {tuple(parameter.shape)}"
                raise CheckpointError(f"the saved state is of another model: {key} has shape {shapes}")
            parameter.copy_(state.tensors[key])
    _restore_optimizer(state, optimizer)
    for name, each in (randoms or {}).items():
        if name not in state.numbers["randoms"]:
            raise CheckpointError(f"the saved state has no random state {name!r}")
        version, internal, gauss = state.numbers["randoms"][name]
        each.setstate((version, tuple(internal), gauss))


def save_state(state: TrainingState, directory: Path) -> None:
    """Replace what is in `directory` by `state`, whole or not at all."""
    aside = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    save_file({key: value.contiguous() for key, value in state.tensors.items()}, aside / TENSORS)
    (aside / NUMBERS).write_text(json.dumps({"step": state.step, **state.numbers}), encoding="utf-8")
    before = directory.with_name(f".{directory.name}.old")
    shutil.rmtree(before, ignore_errors=True)
    if directory.exists():
        directory.rename(before)
    aside.rename(directory)
    shutil.rmtree(before, ignore_errors=True)


def has_state(directory: Path) -> bool:
    """Whether anything was ever saved there."""
    return _present(directory).is_dir()


def _present(directory: Path) -> Path:
    # A save that was killed between its two renames has left the one before under this name.
    before = directory.with_name(f".{directory.name}.old")
    return before if before.is_dir() and not directory.is_dir() else directory


def load_state(directory: Path) -> TrainingState:
    """Raises CheckpointError when there is no whole state in `directory`."""
    where = _present(directory)
    try:
        numbers = json.loads((where / NUMBERS).read_text(encoding="utf-8"))
        return TrainingState(int(numbers.pop("step")), load_file(where / TENSORS), numbers)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{directory} holds no training state to resume from: {error}") from None


def _trainable(modules: Mapping[str, nn.Module]) -> list[tuple[str, str, nn.Parameter]]:
    """Tied parameters come once."""
    return [
        (name, key, value)
        for name, module in modules.items()
        for key, value in module.named_parameters()
        if value.requires_grad
    ]


def _restore_optimizer(state: TrainingState, optimizer: torch.optim.Optimizer) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in state.tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/", 2)
            # A copy: the optimizer keeps what it is given and goes on in it.
            moments.setdefault(int(index), {})[name] = value.clone()
    groups = optimizer.state_dict()["param_groups"]
    for group, learning_rate in zip(groups, state.numbers["learning_rates"], strict=True):
        group["lr"] = learning_rate
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
