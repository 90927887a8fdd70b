"""Masked statistics, against numbers worked by hand."""

import pytest
import torch

from rlhf_core.learning.masked import masked_mean, masked_var, masked_whiten

VALUES = torch.tensor([[1.0, 2.0, 100.0], [6.0, float("nan"), -100.0]])
MASK = torch.tensor([[True, True, False], [True, False, False]])


def test_the_mean_counts_only_true_entries_and_survives_nan_outside_them() -> None:
    # (1 + 2 + 6) / 3 = 3
    assert masked_mean(VALUES, MASK).item() == pytest.approx(3.0)


def test_the_variance_is_that_of_the_population() -> None:
    # ((1-3)^2 + (2-3)^2 + (6-3)^2) / 3 = (4 + 1 + 9) / 3 = 14/3; with n - 1 it would be 7
    assert masked_var(VALUES, MASK).item() == pytest.approx(14 / 3)


def test_whitening_gives_mean_zero_and_unit_variance_and_zero_outside() -> None:
    # (x - 3) / sqrt(14/3) = (-2, -1, 3) / 2.160247
    whitened = masked_whiten(VALUES, MASK)
    assert whitened[MASK].tolist() == pytest.approx([-0.925820, -0.462910, 1.388730], abs=1e-5)
    assert whitened[~MASK].tolist() == [0.0, 0.0, 0.0]


def test_whitening_without_shift_keeps_the_mean() -> None:
    # the same numbers plus the mean, 3
    whitened = masked_whiten(VALUES, MASK, shift_mean=False)
    assert whitened[MASK].tolist() == pytest.approx([2.074180, 2.537090, 4.388730], abs=1e-5)
    assert masked_mean(whitened, MASK).item() == pytest.approx(3.0, abs=1e-5)


def test_whitening_equal_values_gives_zeros_rather_than_infinities() -> None:
    values = torch.full((1, 3), 5.0)
    assert masked_whiten(values, torch.ones(1, 3, dtype=torch.bool)).tolist() == [[0.0, 0.0, 0.0]]


def test_a_mask_that_selects_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="selects no token"):
        masked_mean(VALUES, torch.zeros(2, 3, dtype=torch.bool))


def test_a_mask_of_another_shape_or_type_is_refused() -> None:
    with pytest.raises(ValueError, match="differ in shape"):
        masked_mean(VALUES, MASK[:1])
    with pytest.raises(ValueError, match="boolean"):
        masked_mean(VALUES, MASK.float())
