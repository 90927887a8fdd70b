"""Intervals that know people, and the area under the curve."""

import pytest
import torch

from rlhf_core.learning.reward.intervals import NOTHING, area_under_curve, resampled, share_interval
from rlhf_core.wilson import wilson_interval


def test_few_raters_have_wilson_s_interval() -> None:
    credits = torch.tensor([1.0] * 7 + [0.0] * 2 + [0.5])
    found = share_interval(credits, ["ann", "bob"] * 5)
    assert (found.value, found.n, found.method) == (0.75, 10, "wilson")
    assert (found.low, found.high) == wilson_interval(7.5, 10)


def test_raters_who_agree_with_themselves_make_the_interval_wide() -> None:
    # 20 raters with 50 votes each; half of them always right, half never: one rater is one vote, not 50.
    credits = torch.tensor([1.0, 0.0] * 10).repeat_interleave(50)
    by_rater = share_interval(credits, [str(at // 50) for at in range(1000)])
    low, high = wilson_interval(500, 1000)
    assert by_rater.method == "bootstrap by rater"
    assert by_rater.value == 0.5
    assert by_rater.high - by_rater.low > 4 * (high - low)


def test_nothing_has_no_interval() -> None:
    assert share_interval(torch.zeros(0), []) == NOTHING


def test_a_bootstrap_is_repeatable_and_holds_the_value() -> None:
    values = torch.randn(60, generator=torch.Generator().manual_seed(0))
    raters = [str(at % 12) for at in range(60)]
    one, again = (resampled(lambda at: float(values[at].mean()), raters, seed=1) for _ in range(2))
    assert one == again
    assert one.low < one.value < one.high


def test_the_area_under_the_curve_counts_ordered_pairs() -> None:
    # Positives 3 and 1, negatives 2 and 1: 3 > 2, 3 > 1, 1 < 2, 1 = 1 (half): 2.5 of 4.
    scores = torch.tensor([3.0, 1.0, 2.0, 1.0])
    assert area_under_curve(scores, torch.tensor([True, True, False, False])) == pytest.approx(0.625)
    assert area_under_curve(scores, torch.tensor([True] * 4)) == 0.5
