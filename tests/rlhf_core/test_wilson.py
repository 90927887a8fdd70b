"""Wilson's interval against numbers worked by hand."""

import pytest

from rlhf_core.wilson import wilson_interval


def test_without_trials_anything_is_possible() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_the_interval_matches_a_hand_worked_case() -> None:
    # 8 of 10 with z = 2: centre (0.8 + 4/20) / (1 + 4/10) = 1 / 1.4 = 0.714286
    # half 2 sqrt(0.8 * 0.2 / 10 + 4 / 400) / 1.4 = 2 sqrt(0.026) / 1.4 = 0.230350
    assert wilson_interval(8, 10, z=2.0) == pytest.approx((0.483936, 0.944636), abs=1e-6)


def test_a_perfect_record_of_few_is_not_certainty() -> None:
    # s = n: centre + half = 1 and the lower bound is n / (n + z^2): 10 / (10 + 3.841459) = 0.722467
    assert wilson_interval(10, 10) == pytest.approx((0.722467, 1.0), abs=1e-6)


def test_half_wins_are_allowed() -> None:
    low, high = wilson_interval(2.5, 5)
    assert low + high == pytest.approx(1.0)


@pytest.mark.parametrize(("successes", "n"), [(-1, 3), (4, 3)])
def test_impossible_counts_are_refused(successes: float, n: int) -> None:
    with pytest.raises(ValueError, match="trials"):
        wilson_interval(successes, n)
