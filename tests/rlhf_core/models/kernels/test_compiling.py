"""The exponential that loops use."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from rlhf_core.models import kernels
from rlhf_core.models.kernels.compiling import FLAGS
from tests.rlhf_core.models.kernels.arrays import array


@numba.njit(fastmath=FLAGS, error_model="numpy")  # type: ignore[misc]
def exponentials(x: Any, y: Any) -> None:
    for i in range(x.size):
        y[i] = kernels.exp(x[i])


def test_the_exponential_is_exact_to_the_last_bits_of_a_float() -> None:
    x = np.linspace(-87, 88, 1_000_001, dtype=np.float32)
    y = np.empty_like(x)
    exponentials(x, y)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(y - exact) / exact).max() < 4e-7


def test_the_exponential_of_zero_is_one_and_far_below_it_is_zero() -> None:
    x = array(0.0, -0.0, -87.4, -88, -104, -1e30, -np.inf)
    y = np.empty_like(x)
    exponentials(x, y)
    assert y.tolist() == [1, 1, 0, 0, 0, 0, 0]
