"""What must hold while PPO runs, whatever the model: a broken one stops the run with the numbers.

The trainer measures logprobs before an update and again at its first minibatch, with the same weights, in the same
microbatches: the ratios are then 1 and approx_kl is 0, but for rounding. A policy that starts as its reference has
a KL of 0 to it before it has learned. Either fails when dropout is on, a temperature is missing on one side, the
precisions differ, or the reference is not what it should be.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.devices import Compute

TOLERANCE: Final[Mapping[Compute, float]] = MappingProxyType({"float32": 1e-4, "bfloat16": 2e-2})
"""Largest distance of two logprobs that are the same but for rounding, nats."""


def require_fresh_ratios(stats: Mapping[str, float], compute: Compute) -> None:
    """Raise TrainingError unless the first minibatch's `stats` are those of a policy that has not moved."""
    gap, approx_kl = stats["policy/ratio_gap"], stats["policy/approx_kl"]
    # k3 of a log ratio d is d^2 / 2 to first order; not written as >, so that NaN is broken too.
    if not (gap <= TOLERANCE[compute] and approx_kl <= TOLERANCE[compute] ** 2):
        raise TrainingError(
            f"PPO stopped: before the first step of an update ratios differ from 1 by up to {gap:.3g} and approx_kl is "
            f"{approx_kl:.3g}: the trainer does not compute what it measured (dropout, temperature, precision?)"
        )


def require_start_at_reference(logprobs: Tensor, ref_logprobs: Tensor, compute: Compute) -> None:
    """Raise TrainingError unless both [B, R] agree, as those of a policy that starts as its reference do."""
    gap = float((logprobs - ref_logprobs).abs().max())
    if not gap <= TOLERANCE[compute]:
        raise TrainingError(
            f"PPO stopped: before anything was learned the policy's logprobs differ from its reference's by up to "
            f"{gap:.3g}, so the KL to the reference is not 0: the reference is not the policy that training starts from"
        )
