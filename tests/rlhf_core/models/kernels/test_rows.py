"""Norms and gates against numbers worked by hand, and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import rms_norm, silu

from rlhf_core.models import kernels
from tests.rlhf_core.models.kernels.arrays import ALONE, array, close, noise


def test_a_gate_is_silu_times_what_it_lets_through() -> None:
    y = np.empty((1, 3), dtype=np.float32)
    kernels.gate(array([0.0, math.log(3), -math.log(3), 5.0, 2.0, 4.0]), y, ALONE)
    # sigmoid(ln 3) = 3 / 4 and sigmoid(-ln 3) = 1 / 4: 2 * 3/4 ln 3, and 4 * -1/4 ln 3.
    assert y[0] == close(np.array([0.0, 1.5 * math.log(3), -math.log(3)]), 1e-6)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 3), (5, 64), (3, 577)])
def test_gates_are_torchs(rows: int, size: int) -> None:
    both = noise(rows, 2 * size) * 8
    both[:, 0] = [200.0, -200.0, 90.0, -90.0, -87.0][:rows]
    y = np.empty((rows, size), dtype=np.float32)
    kernels.gate(both, y, ALONE)
    gates, ups = torch.from_numpy(both).chunk(2, dim=-1)
    assert y == close((silu(gates) * ups).numpy(), 1e-6)


def test_a_norm_divides_by_the_root_of_the_mean_square() -> None:
    y = np.empty((1, 2), dtype=np.float32)
    # (9 + 16) / 2 + 12.5 = 25, whose root is 5; the weights are 1 and 2.
    kernels.add_norm(array([3, 4]), array([0, 0]), array(1, 2), np.float32(12.5), y)
    assert y[0] == close(np.array([0.6, 1.6]), 1e-6)


def test_the_norm_of_a_sum_leaves_the_sum() -> None:
    x, y = array([1, 1]), np.empty((1, 2), dtype=np.float32)
    kernels.add_norm(x, array([2, 3]), array(1, 2), np.float32(12.5), y)
    assert x.tolist() == [[3, 4]]
    assert y[0] == close(np.array([0.6, 1.6]), 1e-6)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 576), (2, 5), (3, 32), (64, 33)])
def test_norms_are_torchs(rows: int, size: int) -> None:
    x, more, weight, y = noise(rows, size), noise(rows, size, seed=1), noise(size, seed=2), noise(rows, size)
    total = x + more
    expected = rms_norm(torch.from_numpy(total), (size,), torch.from_numpy(weight), 1e-6).numpy()
    kernels.add_norm(x, more, weight, np.float32(1e-6), y)
    assert np.array_equal(x, total)
    assert y == close(expected)


@pytest.mark.parametrize(("first", "last"), [(0, 4), (4, 6), (7, 8), (3, 3)])
def test_a_norm_of_heads_leaves_the_other_heads_alone(first: int, last: int) -> None:
    qkv, weight = noise(3, 8, 10), noise(10, seed=1)
    expected = qkv.copy()
    heads = torch.from_numpy(qkv[:, first:last].copy())
    expected[:, first:last] = rms_norm(heads, (10,), torch.from_numpy(weight), 1e-6).numpy()
    kernels.norm_heads(qkv, first, last, weight, np.float32(1e-6))
    assert qkv[:, first:last] == close(expected[:, first:last])
    for others in (slice(0, first), slice(last, 8)):
        assert np.array_equal(qkv[:, others], expected[:, others])
