"""What the alternatives to PPO share: the optimizer of a policy, and the loop over planned minibatches.

No algorithm is in here: each is a loop, or a loss for `run_steps`, in a file of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import nn

from rlhf_core.errors import TrainingError
from rlhf_core.learning.alternatives_settings import StepSettings
from rlhf_core.learning.analyse import require_plain_head
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.training_state import TrainingState, capture, restore
from rlhf_core.models.trainable import Trainable

Item = TypeVar("Item")


def alone(trainee: Trainable) -> Devices:
    """This process, where the policy is: what a loop trains on that was given no devices."""
    return Devices(device=trainee.model.device.type)


@dataclass(slots=True, eq=False)
class PolicySteps:
    """The optimizer of a policy, and of the few numbers that may learn beside it."""

    trainee: Trainable
    settings: StepSettings
    devices: Devices
    beside: nn.Module | None = None
    beside_learning_rate: float = 0.0
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        require_plain_head(self.trainee.model)
        groups = [{"params": self.trainee.parameters}]
        if self.beside is not None:
            groups.append({"params": list(self.beside.parameters())})
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)

    def step(self, share: float, stats: Mapping[str, float]) -> Metrics:
        """One optimizer step along the gradients of all processes, at `share` of the peak learning rates.

        Raises TrainingError, and leaves the weights as they are, when a number of `stats` or the gradient is not
        finite.
        """
        parameters = [each for group in self.optimizer.param_groups for each in group["params"]]
        self.devices.sum_gradients(parameters)
        norm = float(nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.settings.grad_clip))
        for name, number in {**stats, "policy/grad_norm": norm}.items():
            if not math.isfinite(number):
                raise TrainingError(f"training stopped: {name} is {number}")
        rates = (self.settings.learning_rate * share, self.beside_learning_rate * share)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate
        self.optimizer.step()
        self.forget()
        return {"policy/grad_norm": norm, "policy/learning_rate": rates[0]}

    def forget(self) -> None:
        """Drop gradients that were not stepped along."""
        self.optimizer.zero_grad(set_to_none=True)

    def resume(self, hooks: Hooks) -> int:
        """How many steps of the loop are behind, once what was kept of them is put back."""
        if hooks.resume is None:
            return 0
        restore(hooks.resume, self._modules(), self.optimizer)
        return hooks.resume.step

    def report(self, hooks: Hooks, step: int, metrics: Metrics) -> Metrics:
        """Log the metrics of one step of the loop, counted from 1, and keep the state where it is wanted."""
        metrics = {"step": float(step), **metrics}
        hooks.log(metrics)
        if hooks.keeps(step) and hooks.keep is not None:
            hooks.keep(self._state(step))
        return metrics

    def _state(self, step: int) -> TrainingState:
        return capture(step, self._modules(), self.optimizer)

    def _modules(self) -> dict[str, nn.Module]:
        return {"policy": self.trainee.model} | ({} if self.beside is None else {"beside": self.beside})


def linear_share(step: int, steps: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a step counted from 0: up over the warmup, then down to 0 in a line."""
    warmup = max(1.0, warmup_share * steps)
    return min((step + 1) / warmup, (steps - step) / max(1.0, steps - warmup + 1))


def shuffled_minibatches(items: Sequence[Item], size: int, epochs: int, seed: int) -> list[list[Item]]:
    """The minibatches of all epochs, each epoch shuffled anew; the last of an epoch may be smaller."""
    shuffler = random.Random(seed)
    orders = [shuffler.sample(items, len(items)) for _ in range(epochs)]
    return [order[start : start + size] for order in orders for start in range(0, len(items), size)]


def require_weights(weights: Sequence[float] | None, count: int) -> None:
    """Raise TrainingError for weights that are not one number, 0 or more, for each of `count` judgements."""
    if weights is None:
        return
    if len(weights) != count or min(weights) < 0.0 or sum(weights) <= 0.0:
        least = min(weights, default=0.0)
        raise TrainingError(
            f"{count} judgements need a weight each, 0 or more, not {len(weights)}, the least {least:g}"
        )


def run_steps(
    steps: PolicySteps,
    minibatches: Sequence[Item],
    warmup_share: float,
    hooks: Hooks,
    improve: Callable[[Item, float], Metrics],
) -> list[Metrics]:
    """Improve on one planned minibatch after another, from where an earlier run stopped. Returns what was logged.

    `improve` takes a minibatch and the share of the peak learning rate, and makes one optimizer step.
    """
    history, total = [], len(minibatches)
    for step in range(steps.resume(hooks), total):
        hooks.progress(f"step {step + 1}/{total}", step / total)
        metrics = improve(minibatches[step], linear_share(step, total, warmup_share))
        history.append(steps.report(hooks, step + 1, metrics))
    steps.trainee.refresh()
    hooks.progress("done", 1.0)
    return history
