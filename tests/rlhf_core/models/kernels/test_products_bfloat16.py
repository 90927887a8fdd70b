"""Products with weights that are held in bfloat16, against those of the numbers that they are."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_core.models import kernels
from rlhf_core.models.kernels.products_bfloat16 import FEW_ROWS
from tests.rlhf_core.models.kernels.arrays import ALONE, NOTHING, array, bfloat16, close, noise


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 3, 4, 5, 7, 64, 513])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 64, 65, 129])
@pytest.mark.parametrize("inputs", [2, 38, 64, 200])
def test_weights_in_bfloat16_are_multiplied_as_the_numbers_that_they_are(
    inputs: int, rows: int, outputs: int, bias: bool
) -> None:
    x, (words, weight) = noise(rows, inputs), bfloat16(noise(outputs, inputs, seed=1))
    added = noise(outputs, seed=2) if bias else NOTHING
    y = np.full((rows, outputs + 5), 7.0, dtype=np.float32)
    kernels.multiply_bfloat16(x, words, added, y, 2, ALONE)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + (added if bias else 0.0)
    assert y[:, 2:-3] == close(expected)
    assert (y[:, :2] == 7).all()
    assert (y[:, -3:] == 7).all()


def test_numbers_of_every_kind_keep_their_value_when_widened() -> None:
    numbers = array(0.0, -0.0, 1.0, -1.5, 2.0**-130, 3e38, np.inf, -np.inf)
    # Beside each stands a one, which the row does not count: it is the other half of the word that must not be seen.
    for column, row in ((0, array([1.0, 0.0])), (1, array([0.0, 1.0]))):
        weight = np.ones((8, 2), dtype=np.float32)
        weight[:, column] = numbers
        words, expected = bfloat16(weight)
        for rows in (1, 2, FEW_ROWS + 1):
            y = np.empty((rows, 8), dtype=np.float32)
            kernels.multiply_bfloat16(np.repeat(row, rows, axis=0), words, NOTHING, y, 0, ALONE)
            assert (y == expected[:, column]).all()
