"""What is stored, and attention over it, against numbers worked by hand and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rlhf_core.models import kernels
from rlhf_core.models.kernels.crew import Words
from tests.rlhf_core.models.kernels.arrays import ALONE, NO_TABLE, Array, array, close, noise, tables, turned


def empty_slots(slots: int, kv_heads: int, positions: int, size: int) -> tuple[Array, Array]:
    keys, values = (np.zeros((slots, kv_heads, positions, size), dtype=np.float32) for _ in range(2))
    return keys, values


def test_a_stored_token_is_turned_by_its_positions_angles() -> None:
    # A query, a key and a value. At position 1 the pair (first, third) turns by a right angle, (second, fourth) not:
    # (1, 3) becomes (-3, 1) and (5, 7) becomes (-7, 5).
    qkv = array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    cos, sin = array([1, 1, 1, 1], [0, 1, 0, 1]), array([0, 0, 0, 0], [-1, 0, 1, 0])
    keys, values = empty_slots(2, 1, 3, 4)
    kernels.store(qkv, 0, 1, cos, sin, keys, values, np.array([1]), np.array([1]))
    assert qkv[0].tolist() == [[-3, 2, 1, 4], [-7, 6, 5, 8], [9, 10, 11, 12]]
    assert keys[1, 0].tolist() == [[0, 0, 0, 0], [-7, 6, 5, 8], [0, 0, 0, 0]]
    assert values[1, 0].tolist() == [[0, 0, 0, 0], [9, 10, 11, 12], [0, 0, 0, 0]]
    assert not keys[0].any()


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("first", [0, 2, 5])
def test_rows_are_stored_where_they_belong_and_the_ones_before_are_not(first: int, rotary: bool) -> None:
    slots, positions = [0, 1, 3, 3, 2], [4, 5, 0, 1, 9]
    cos, sin = tables(10, 6) if rotary else (NO_TABLE, NO_TABLE)
    qkv = noise(5, 8, 6)
    expected, (keys, values), (all_keys, all_values) = qkv.copy(), empty_slots(4, 2, 10, 6), empty_slots(4, 2, 10, 6)
    if rotary:
        expected[first:, :6] = turned(qkv[first:, :6], cos, sin, positions[first:])
    for row in range(first, 5):
        all_keys[slots[row], :, positions[row]] = expected[row, 4:6]
        all_values[slots[row], :, positions[row]] = expected[row, 6:]
    kernels.store(qkv, first, 4, cos, sin, keys, values, np.array(slots), np.array(positions))
    assert np.array_equal(qkv[:first], expected[:first])
    assert qkv == close(expected, 1e-6)
    assert keys == close(all_keys, 1e-6)
    assert np.array_equal(values, all_values)


def test_attention_weighs_values_by_the_softmax_of_scores() -> None:
    keys, values = empty_slots(1, 1, 2, 2)
    values[0, 0, 0] = [1, 0]
    qkv, y = array([[math.log(9), 0], [1, 0], [0, 1]]), np.empty((1, 1, 2), dtype=np.float32)
    slot, position = np.array([0]), np.array([1])
    kernels.store(qkv, 0, 1, NO_TABLE, NO_TABLE, keys, values, slot, position)
    kernels.attend(qkv, 0, 1, NO_TABLE, NO_TABLE, keys, values, slot, position, 0, np.float32(0.5), y, ALONE)
    # Scores 0 and ln(9) / 2 = ln 3: weights 1/4 and 3/4 of the values (1, 0) and (0, 1).
    assert y[0, 0] == close(np.array([0.25, 0.75]), 1e-6)
    assert keys[0, 0].tolist() == [[0, 0], [1, 0]]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("window", [0, 1, 5, 300])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1), (6, 2)])
def test_attention_over_slots_of_different_lengths_is_torchs(
    heads: int, kv_heads: int, rotary: bool, window: int, threads: int, crews: dict[int, Words]
) -> None:
    positions, size = [0, 3, 6, 40, 9], 10
    cos, sin = tables(50, size) if rotary else (NO_TABLE, NO_TABLE)
    # Two more rows than decode, and one more slot: neither is touched.
    qkv, y = noise(7, heads + 2 * kv_heads, size), np.full((7, heads, size), 7.0, dtype=np.float32)
    keys, values = noise(6, kv_heads, 50, size, seed=1), noise(6, kv_heads, 50, size, seed=2)
    expected = qkv.copy()
    if rotary:
        expected[:5, : heads + kv_heads] = turned(qkv[:5, : heads + kv_heads], cos, sin, positions)
    all_keys, all_values = keys.copy(), values.copy()
    for row, position in enumerate(positions):
        all_keys[row, :, position] = expected[row, heads : heads + kv_heads]
        all_values[row, :, position] = expected[row, heads + kv_heads :]
        # What a row does not see may hold anything.
        for tensor in (keys, values, all_keys, all_values):
            tensor[row, :, position + 1 :] = np.nan
            tensor[row, :, : max(0, position + 1 - window) if window else 0] = np.nan
    where = keys, values, np.arange(7), np.array([*positions, 0, 0])
    if not rotary:
        kernels.store(qkv[:5], 0, heads, cos, sin, *where)
    kernels.attend(qkv, 0, 5, cos, sin, *where, window, np.float32(0.3), y, crews[threads])
    for row, position in enumerate(positions):
        start = max(0, position + 1 - window) if window else 0
        query, k, v = (
            torch.from_numpy(part)[None]
            for part in (
                expected[row, :heads, None],
                all_keys[row, :, start : position + 1],
                all_values[row, :, start : position + 1],
            )
        )
        attended = scaled_dot_product_attention(query, k, v, scale=0.3, enable_gqa=True)[0, :, 0]
        assert y[row] == close(attended.numpy())
    assert qkv == close(expected, 1e-6)
    assert (y[5:] == 7).all()
    assert np.allclose(keys, all_keys, atol=1e-6, equal_nan=True)
    assert np.array_equal(values, all_values, equal_nan=True)


@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_values_may_be_of_another_size_than_keys(length: int) -> None:
    query, keys, values = noise(8), noise(length, 8, seed=1), noise(length, 12, seed=2)
    scores, y = np.empty(length, dtype=np.float32), np.empty(12, dtype=np.float32)
    kernels.attend_one(query, keys, values, np.float32(0.3), scores, y)
    weights = torch.from_numpy(keys @ query * 0.3).softmax(dim=0).numpy()
    assert y == close(weights @ values)


def test_scores_far_apart_leave_the_highest_alone() -> None:
    values = noise(5, 3)
    scores, y = np.empty(5, dtype=np.float32), np.empty(3, dtype=np.float32)
    keys = array([-1e30], [200], [1e4], [-1e4], [0])
    kernels.attend_one(array(1.0), keys, values, np.float32(1), scores, y)
    assert np.array_equal(y, values[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 4])
def test_what_is_not_finite_stays_so(at: int, bad: float) -> None:
    keys, scores, y = noise(5, 3), np.empty(5, dtype=np.float32), np.empty(3, dtype=np.float32)
    keys[at] = bad
    # An infinite score less itself is NaN: a caller that looks at the result must be able to see it.
    kernels.attend_one(array(1, 1, 1), keys, noise(5, 3), np.float32(1), scores, y)
    assert not np.isfinite(y).any()
