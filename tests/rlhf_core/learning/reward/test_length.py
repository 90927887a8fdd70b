"""The length report on pairs whose lengths and scores are known."""

import math

import pytest
import torch

from rlhf_core.learning.preference_losses import LEFT, RIGHT, TIE
from rlhf_core.learning.reward.length import ScoredPairs, correlation, credits_of, length_report, length_slope


def scored(rows: list[tuple[float, float, int, int, int]]) -> ScoredPairs:
    left, right, left_length, right_length, outcomes = (torch.tensor(part) for part in zip(*rows, strict=True))
    return ScoredPairs(left, right, left_length, right_length, outcomes)


def test_the_report_counts_longer_wins_and_matched_lengths_by_hand() -> None:
    pairs = scored(
        [
            (1.0, 0.0, 20, 10, LEFT),  # longer is chosen, the model is right
            (1.0, 0.0, 10, 30, LEFT),  # shorter is chosen, the model is right
            (0.0, 1.0, 100, 95, LEFT),  # matched (5 % apart): longer chosen, the model is wrong
            (0.0, 1.0, 50, 50, RIGHT),  # matched: lengths say nothing, the model is right
            (0.0, 1.0, 50, 50, TIE),  # ties count nowhere
        ]
    )
    scores = torch.cat([pairs.left_scores, pairs.right_scores])
    lengths = torch.cat([pairs.left_lengths, pairs.right_lengths])
    report = length_report(scores, lengths, pairs)
    assert report.longer_accuracy == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert (report.matched_accuracy, report.n_matched) == (0.5, 2)
    assert report.slope == 0.0  # too few pairs of different lengths
    assert report.correlation == pytest.approx(correlation(scores, lengths))


def test_the_slope_of_length_is_found_at_equal_verdicts() -> None:
    # s = 0.7 log(length) + 2 * (better), and people choose the better one, which is often also the longer.
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(5, 100, (400, 2), generator=generator)
    better = torch.rand(400, generator=generator) < torch.where(lengths[:, 0] > lengths[:, 1], 0.8, 0.2)
    lead = torch.where(better, 1.0, -1.0)
    left, right = 0.7 * lengths[:, 0].log() + lead, 0.7 * lengths[:, 1].log() - lead
    outcomes = torch.where(better, LEFT, RIGHT)
    assert length_slope(ScoredPairs(left, right, *lengths.T, outcomes)) == pytest.approx(0.7, abs=1e-5)
    naive = torch.linalg.lstsq(
        (lengths[:, :1].log() - lengths[:, 1:].log()), (left - right)[:, None], driver="gelsd"
    ).solution
    assert float(naive) > 1.5  # without the verdict, quality is taken for length


def test_equal_scores_are_half_right() -> None:
    left, right = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([1.0, 0.0, 1.0])
    assert credits_of(left, right, torch.tensor([LEFT, RIGHT, RIGHT])).tolist() == [0.5, 0.0, 1.0]


def test_correlation_of_what_does_not_vary_is_zero() -> None:
    assert correlation(torch.ones(4), torch.arange(4.0)) == 0.0
    assert correlation(torch.zeros(0), torch.zeros(0)) == 0.0
    assert math.isclose(correlation(torch.arange(4.0), -torch.arange(4.0)), -1.0)
