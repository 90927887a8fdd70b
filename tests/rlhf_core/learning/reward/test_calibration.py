"""Calibration by hand on a few predictions, and its behaviour where there is little to measure."""

import math

import pytest
import torch

from rlhf_core.learning.preference_losses import LEFT, RIGHT, TIE
from rlhf_core.learning.reward.calibration import (
    LEAST_CHOICES,
    calibrate,
    calibration_error,
    left_probability,
    measure,
)

NO_TIES = torch.tensor(0.0)


def test_the_calibration_error_of_four_predictions_in_bins_of_one() -> None:
    # Confidences 0.9 right, 0.6 wrong, 0.8 (of the other outcome) right, 0.7 right:
    # (0.1 + 0.6 + 0.2 + 0.3) / 4 = 0.3
    probabilities = torch.tensor([0.9, 0.6, 0.2, 0.7], dtype=torch.float64)
    error, bins = calibration_error(probabilities, torch.tensor([True, False, False, True]))
    assert error == pytest.approx(0.3)
    assert [round(each.confidence, 6) for each in bins] == [0.6, 0.7, 0.8, 0.9]
    assert [each.accuracy for each in bins] == [0.0, 1.0, 1.0, 1.0]


def test_bins_hold_equal_mass_in_order_of_confidence() -> None:
    # Twenty predictions in ten bins of two; always right, so the error is the mean doubt.
    probabilities = torch.linspace(0.505, 0.98, 20, dtype=torch.float64)
    error, bins = calibration_error(probabilities, torch.ones(20, dtype=torch.bool))
    assert [each.n for each in bins] == [2] * 10
    assert error == pytest.approx(float((1 - probabilities).mean()))


def test_brier_and_nll_worked_by_hand() -> None:
    # p = 0.8 happened, p = 0.4 did not: Brier (0.04 + 0.16) / 2 = 0.1, nll -(log 0.8 + log 0.6) / 2 = 0.36698
    found = measure(torch.tensor([0.8, 0.4]), torch.tensor([True, False]))
    assert found.brier == pytest.approx(0.1, abs=1e-6)
    assert found.nll == pytest.approx(0.36698, abs=1e-5)
    assert found.n == 2


def test_the_probability_of_left_leaves_ties_out() -> None:
    # theta = 2, z = log 4: 2/3 and 1/9 (as in the losses' test): 2/3 / (2/3 + 1/9) = 6/7.
    probability = left_probability(torch.tensor([math.log(4)]), torch.tensor(math.log(2)))
    assert float(probability) == pytest.approx(6 / 7)


def test_few_choices_leave_the_temperature_at_one() -> None:
    logits = torch.full((LEAST_CHOICES - 1,), 5.0)
    outcomes = torch.tensor([LEFT, RIGHT] * 9 + [LEFT])
    found = calibrate(logits, outcomes, NO_TIES, [str(at) for at in range(len(logits))])
    assert (found.temperature, found.n) == (1.0, 19)
    assert found.ece == pytest.approx(float(torch.sigmoid(torch.tensor(5.0))) - 10 / 19, abs=0.05)


def test_nothing_to_measure_gives_no_numbers_and_no_bins() -> None:
    found = calibrate(torch.zeros(3), torch.full((3,), TIE), torch.tensor(0.5), ["a", "b", "c"])
    assert (found.n, found.ece, found.bins, found.temperature) == (0, 0.0, (), 1.0)


def test_one_prompt_is_never_used_to_test_its_own_temperature() -> None:
    # Two prompts with opposite truths: each half is cooled by what the other half teaches, and that is wrong for it.
    logits = torch.tensor([3.0] * 40)
    outcomes = torch.tensor([LEFT] * 20 + [RIGHT] * 20)
    found = calibrate(logits, outcomes, NO_TIES, ["a"] * 20 + ["b"] * 20)
    # The half of a is cooled by b (as cold as can be: p = sigma(3 / 20)), that of b by a (as hot: p = 1).
    assert found.nll > 5.0


@pytest.mark.parametrize("bias", [0.0, 1.0, -2.0])
def test_a_leaning_to_one_side_is_no_part_of_the_temperature(bias: float) -> None:
    draw = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(20_000, generator=draw, dtype=torch.float64)
    left = torch.rand(20_000, generator=draw, dtype=torch.float64) < torch.sigmoid(logits / 2.0 + bias)
    found = calibrate(logits, torch.where(left, LEFT, RIGHT), NO_TIES, list(map(str, range(20_000))), bias=bias)
    assert found.temperature == pytest.approx(2.0, abs=0.1)
    assert found.ece < 0.01
