"""Products with numbers in bfloat16, against those of the numbers that they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlhf_core.models import kernels
from rlhf_core.models.kernels.products import FEW_ROWS, rounded
from tests.rlhf_core.models.kernels.arrays import ALONE, NOTHING, array, bfloat16, close, noise


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 3, 4, 5, 7, 64, 513])
@pytest.mark.parametrize("rows", [1, 2, 3, 7, 8, 9, 64, 65, 129])
@pytest.mark.parametrize("inputs", [2, 38, 64, 200])
def test_weights_in_bfloat16_are_multiplied_as_the_numbers_that_they_are(
    inputs: int, rows: int, outputs: int, bias: bool, rounds: bool
) -> None:
    x, (words, weight) = noise(rows, inputs), bfloat16(noise(outputs, inputs, seed=1))
    added = noise(outputs, seed=2) if bias else NOTHING
    y = np.full((rows, outputs + 5), 7.0, dtype=np.float32)
    multiply = kernels.multiply_bfloat16 if rounds else kernels.multiply_widened
    multiply(x, words, added, y, 2, ALONE)
    read = bfloat16(x)[1] if rounds else x
    expected = read.astype(np.float64) @ weight.T.astype(np.float64) + (added if bias else 0.0)
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
            kernels.multiply_widened(np.repeat(row, rows, axis=0), words, NOTHING, y, 0, ALONE)
            assert (y == expected[:, column]).all()


def test_numbers_are_rounded_as_torch_rounds_them() -> None:
    # Halfway between two neighbours, just beside it, beyond the largest, none at all, and of every size.
    ties = np.array([0x3F808000, 0x3F818000, 0x3F808001, 0x3F807FFF, 0x7F7FFFFF, 0xFF7FFFFF], dtype=np.uint32)
    few = array(0.0, -0.0, np.inf, -np.inf, np.nan, 1e-40)
    strange = np.array([0x7F800001, 0xFFFFFFFF], dtype=np.uint32).view(np.float32)
    sizes = (noise(500) * 10.0 ** np.arange(-25, 25).repeat(10)).astype(np.float32)
    x = np.concatenate([ties.view(np.float32), few, strange, sizes])[None]
    ours = torch.from_numpy(rounded(x)).view(torch.bfloat16)
    assert torch.equal(ours.isnan(), torch.from_numpy(x).isnan())
    assert torch.equal(ours.nan_to_num(), torch.from_numpy(x).bfloat16().nan_to_num())
