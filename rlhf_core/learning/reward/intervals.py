"""How sure a measured share is, when some people judged often: people are resampled, not their judgements.

With few people there is little to resample, and judgements stand for themselves.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor

from rlhf_core.wilson import wilson_interval

LEAST_RATERS: Final = 10
"""Raters below which resampling them says little."""
BOOTSTRAPS: Final = 500


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """A number with its 95 % interval."""

    value: float
    low: float
    high: float
    n: int
    method: str
    """`wilson`, `bootstrap by rater`, `bootstrap`, or `none` where there was nothing to measure."""


NOTHING: Final = Estimate(value=0.0, low=0.0, high=1.0, n=0, method="none")


def share_interval(credits: Tensor, raters: Sequence[str], seed: int = 0) -> Estimate:
    """Mean of credits [B] between 0 and 1, with its interval."""
    if not len(credits):
        return NOTHING
    if len(set(raters)) < LEAST_RATERS:
        total = min(float(credits.sum()), float(len(credits)))
        low, high = wilson_interval(total, len(credits))
        return Estimate(value=total / len(credits), low=low, high=high, n=len(credits), method="wilson")
    return resampled(lambda at: float(credits[at].mean()), raters, seed)


def resampled(measure: Callable[[Tensor], float], raters: Sequence[str], seed: int = 0) -> Estimate:
    """`measure` of indices [B] into the data: its value on all of it, and its spread when raters are drawn anew."""
    by_rater = len(set(raters)) >= LEAST_RATERS
    groups = raters if by_rater else [str(at) for at in range(len(raters))]
    rng = random.Random(f"bootstrap {seed}")
    members: dict[str, list[int]] = {}
    for at, group in enumerate(groups):
        members.setdefault(group, []).append(at)
    clusters = [torch.tensor(each) for each in members.values()]
    draws = (torch.cat(rng.choices(clusters, k=len(clusters))) for _ in range(BOOTSTRAPS))
    spread = torch.tensor([measure(draw) for draw in draws], dtype=torch.float64)
    low, high = torch.quantile(spread, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    value = measure(torch.arange(len(groups)))
    return Estimate(
        value=value, low=low, high=high, n=len(groups), method="bootstrap by rater" if by_rater else "bootstrap"
    )


def area_under_curve(scores: Tensor, positive: Tensor) -> float:
    """Probability that a positive has a higher score than a negative, ties half; 0.5 where one kind is missing."""
    above, below = scores[positive].double(), scores[~positive].double()
    if not len(above) or not len(below):
        return 0.5
    ordered = below.sort().values
    under = torch.searchsorted(ordered, above, right=False) + torch.searchsorted(ordered, above, right=True)
    return float(under.double().mean()) / (2 * len(below))
