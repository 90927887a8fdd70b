"""Several axes in one score, and one of them held above a floor. Pure functions of tensors and numbers; B responses.

PPO maximises E[score] subject to E[axis] >= floor by its Lagrangian: the score becomes (score + m axis) / (1 + m), and
the multiplier m >= 0 climbs while the floor is violated and falls while it is not (Dai et al. 2023, Safe RLHF, 3.2).
The division keeps the score's scale, and with it the meaning of `kl_coef`, whatever m is. Axis scores are normalised
like scores: 0 is the mean of the supervised policy's answers.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from rlhf_core.errors import TrainingError


def combine_axes(
    scores: Tensor,
    axes: Mapping[str, Tensor],
    weights: Mapping[str, float],
    *,
    floor_axis: str | None = None,
    multiplier: float = 0.0,
) -> Tensor:
    """What PPO climbs [B]: `scores` [B] and weighted `axes` [B] each, and the floored axis by its multiplier.

    Raises TrainingError for an axis that nobody scored.
    """
    missing = sorted({*weights, *([floor_axis] if floor_axis else [])} - set(axes))
    if missing:
        known = ", ".join(axes) or "none"
        raise TrainingError(f"there are no scores for the axis {missing[0]!r}: the reward model has learned {known}")
    total = scores
    for name, weight in weights.items():
        total = total + weight * axes[name].to(scores)
    if floor_axis is None:
        return total
    return (total + multiplier * axes[floor_axis].to(scores)) / (1.0 + multiplier)


def next_multiplier(multiplier: float, axis_mean: float, floor: float, rate: float) -> float:
    """One step of projected gradient ascent on the dual: m + rate * (floor - mean), but never below 0."""
    return max(0.0, multiplier + rate * (floor - axis_mean))
