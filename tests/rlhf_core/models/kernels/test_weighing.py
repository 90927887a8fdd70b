"""An adapter's term, added to what stands there."""

from __future__ import annotations

import numpy as np
import pytest

from rlhf_core.models import kernels
from rlhf_core.models.kernels.crew import Words
from tests.rlhf_core.models.kernels.arrays import ALONE, array, close, noise


def test_a_low_rank_term_is_what_the_hand_works_out() -> None:
    y = array([1, 1, 1], [0, 0, 0])
    # (1, 2) and (3, 4) narrowed to their sums, 3 and 7, and these widened by 2, 0 and -1.
    kernels.add_low_rank(array([1, 2], [3, 4]), array([1, 1]), array([2, 0, -1]), y, ALONE)
    assert y.tolist() == [[7, 1, -2], [14, 0, -7]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rank", [1, 3, 16, 40])
@pytest.mark.parametrize("outputs", [1, 7, 64, 200, 513])
@pytest.mark.parametrize("rows", [1, 3, 4, 65])
def test_low_rank_terms_are_added_as_numpy_adds_them(
    rows: int, outputs: int, rank: int, threads: int, crews: dict[int, Words]
) -> None:
    x, y = noise(rows, 100), noise(rows, outputs, seed=3)
    down, up = noise(rank, 100, seed=1), noise(rank, outputs, seed=2)
    expected = y + x.astype(np.float64) @ down.T.astype(np.float64) @ up.astype(np.float64)
    kernels.add_low_rank(x, down, up, y, crews[threads])
    assert y == close(expected, 1e-4)
