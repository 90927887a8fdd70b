"""How much of a reward model is a ruler: what its scores owe to the length of answers.

Source: design notes 2.2(f); Singhal et al. 2310.03716 found most of what PPO gained on some data to be length.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor

from rlhf_core.learning.preference_losses import LEFT, TIE

MATCHED: Final = 0.1
"""Lengths are matched when they differ by less than this share of the longer one."""
LEAST_PAIRS: Final = 10
"""Pairs of different lengths below which no slope is fitted."""


class ScoredPairs(NamedTuple):
    """P comparisons with the scores and the lengths, in tokens, of both sides."""

    left_scores: Tensor
    right_scores: Tensor
    left_lengths: Tensor
    right_lengths: Tensor
    outcomes: Tensor
    """[P] long: LEFT, RIGHT or TIE."""


class LengthReport(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracies are of decisive choices, equal lengths or scores count half; 0 where there is nothing to measure."""

    correlation: float = 0.0
    """Pearson's, of score and length over all answers."""
    longer_accuracy: float = 0.0
    """Of the rule that the longer answer is chosen."""
    matched_accuracy: float = 0.0
    """Of the model, where lengths are matched: there length cannot help it."""
    n_matched: int = 0
    slope: float = 0.0
    """Points of score per unit of log length between answers to one prompt that people judged alike."""


def length_report(scores: Tensor, lengths: Tensor, pairs: ScoredPairs) -> LengthReport:
    """`scores` and `lengths` [B] are of all answers, those of the pairs among them."""
    decisive = pairs.outcomes != TIE
    left, right = pairs.left_lengths.double(), pairs.right_lengths.double()
    matched = decisive & ((left - right).abs() < MATCHED * torch.maximum(left, right))
    hits = credits_of(pairs.left_scores, pairs.right_scores, pairs.outcomes)
    return LengthReport(
        correlation=correlation(scores, lengths),
        longer_accuracy=_mean(credits_of(left, right, pairs.outcomes)[decisive]),
        matched_accuracy=_mean(hits[matched]),
        n_matched=int(matched.sum()),
        slope=length_slope(pairs),
    )


def length_slope(pairs: ScoredPairs) -> float:
    """beta of (s_left - s_right) = beta (log len_left - log len_right) + gamma y by least squares, y = 1, -1 or 0 for
    what people chose: the verdict stands for quality, so what is left to length is bias. 0 with too few pairs.
    """
    difference = pairs.left_lengths.double().log() - pairs.right_lengths.double().log()
    if int((difference != 0).sum()) < LEAST_PAIRS:
        return 0.0
    verdict = torch.where(pairs.outcomes == TIE, 0.0, torch.where(pairs.outcomes == LEFT, 1.0, -1.0)).double()
    design = torch.stack([difference, verdict], dim=1)
    target = (pairs.left_scores - pairs.right_scores).double()
    # Both columns may say the same; the least-norm solution then shares the slope between them.
    solution = torch.linalg.pinv(design) @ target
    return float(solution[0])


def credits_of(left: Tensor, right: Tensor, outcomes: Tensor) -> Tensor:
    """[P]: 1 where the chosen side has the larger value, 0.5 where they are equal, else 0; ties are to be left out."""
    lead = torch.where(outcomes == LEFT, left - right, right - left)
    return (lead > 0).double() + (lead == 0).double() / 2


def correlation(left: Tensor, right: Tensor) -> float:
    """Pearson's; 0 where either side does not vary, so that it can be stored as a number."""
    if not len(left):
        return 0.0
    left, right = left.double() - left.double().mean(), right.double() - right.double().mean()
    scale = float(left.norm() * right.norm())
    return float(left @ right) / scale if scale > 0 else 0.0


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else 0.0
