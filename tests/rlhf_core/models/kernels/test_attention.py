"""What is stored, and attention over it, against numbers worked by hand and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import scaled_dot_product_attention

from rlhf_core.models import kernels
from rlhf_core.models.kernels import BFLOAT16, FLOAT32
from rlhf_core.models.kernels.crew import Words
from tests.rlhf_core.models.kernels.arrays import ALONE, NO_TABLE, Array, array, bfloat16, close, noise, tables, turned


def words(array: Array) -> NDArray[np.int32]:
    """An array as kernels keep it."""
    return array.view(np.int32)


def rounded(array: Array) -> Array:
    return bfloat16(array)[1]


def empty_slots(slots: int, kv_heads: int, positions: int, size: int) -> tuple[Array, Array]:
    keys, values = (np.zeros((slots, kv_heads, positions, size), dtype=np.float32) for _ in range(2))
    return keys, values


def test_a_stored_token_is_turned_by_its_positions_angles() -> None:
    # A query, a key and a value. At position 1 the pair (first, third) turns by a right angle, (second, fourth) not:
    # (1, 3) becomes (-3, 1) and (5, 7) becomes (-7, 5).
    qkv = array([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    cos, sin = array([1, 1, 1, 1], [0, 1, 0, 1]), array([0, 0, 0, 0], [-1, 0, 1, 0])
    keys, values = empty_slots(2, 1, 3, 4)
    kernels.store(FLOAT32, qkv, 0, 1, cos, sin, words(keys), words(values), np.array([1]), np.array([1]))
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
    kernels.store(FLOAT32, qkv, first, 4, cos, sin, words(keys), words(values), np.array(slots), np.array(positions))
    assert np.array_equal(qkv[:first], expected[:first])
    assert qkv == close(expected, 1e-6)
    assert keys == close(all_keys, 1e-6)
    assert np.array_equal(values, all_values)


def test_attention_weighs_values_by_the_softmax_of_scores() -> None:
    keys, values = empty_slots(1, 1, 2, 2)
    values[0, 0, 0] = [1, 0]
    qkv, y = array([[math.log(9), 0], [1, 0], [0, 1]]), np.empty((1, 1, 2), dtype=np.float32)
    where = words(keys), words(values), np.array([0]), np.array([1])
    kernels.store(FLOAT32, qkv, 0, 1, NO_TABLE, NO_TABLE, *where)
    kernels.attend(FLOAT32, qkv, 0, 1, NO_TABLE, NO_TABLE, *where, 0, np.float32(0.5), y, ALONE)
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
    where = words(keys), words(values), np.arange(7), np.array([*positions, 0, 0])
    if not rotary:
        kernels.store(FLOAT32, qkv[:5], 0, heads, cos, sin, *where)
    kernels.attend(FLOAT32, qkv, 0, 5, cos, sin, *where, window, np.float32(0.3), y, crews[threads])
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


@pytest.mark.parametrize("size", [1, 12, 32, 64, 100])
@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_values_may_be_of_another_size_than_keys(length: int, size: int) -> None:
    queries, keys, values = noise(3, 8), noise(length, 8, seed=1), noise(length, size, seed=2)
    scores, y = np.empty((3, length), dtype=np.float32), np.empty((3, size), dtype=np.float32)
    kernels.attend_alike(FLOAT32, queries, words(keys), words(values), np.float32(0.3), scores, y)
    weights = torch.from_numpy(queries @ keys.T * 0.3).softmax(dim=1).numpy()
    assert y == close(weights @ values)


def test_scores_far_apart_leave_the_highest_alone() -> None:
    values = noise(5, 3)
    scores, y = np.empty((1, 5), dtype=np.float32), np.empty((1, 3), dtype=np.float32)
    keys = array([-1e30], [200], [1e4], [-1e4], [0])
    kernels.attend_alike(FLOAT32, array([1.0]), words(keys), words(values), np.float32(1), scores, y)
    assert np.array_equal(y[0], values[2])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 4])
def test_what_is_not_finite_stays_so(at: int, bad: float) -> None:
    keys, scores, y = noise(5, 3), np.empty((1, 5), dtype=np.float32), np.empty((1, 3), dtype=np.float32)
    keys[at] = bad
    # An infinite score less itself is NaN: a caller that looks at the result must be able to see it.
    kernels.attend_alike(FLOAT32, array([1, 1, 1]), words(keys), words(noise(5, 3)), np.float32(1), scores, y)
    assert not np.isfinite(y).any()


@pytest.mark.parametrize("kind", [FLOAT32, BFLOAT16])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("window", [0, 1, 5, 300])
@pytest.mark.parametrize(("start", "length"), [(0, 1), (0, 3), (0, 40), (7, 16), (5, 33)])
def test_a_prompt_part_attends_as_torchs_does(
    start: int, length: int, window: int, threads: int, kind: int, crews: dict[int, Words]
) -> None:
    heads, kv_heads, size, slot, row, end = 6, 2, 10, 2, 3, start + length
    # Rows before and after it are others'.
    qkv = noise(row + length + 2, heads + 2 * kv_heads, size)
    y = np.full((len(qkv), heads, size), 7.0, dtype=np.float32)
    keys, values = noise(4, kv_heads, 60, size, seed=1), noise(4, kv_heads, 60, size, seed=2)
    for tensor in (keys, values):
        tensor[slot, :, end:] = np.nan
        tensor[slot, :, : max(0, start + 1 - window) if window else 0] = np.nan
    kept, queries = (words(keys), words(values)), qkv
    if kind == BFLOAT16:
        (stored_keys, keys), (stored_values, values) = bfloat16(keys), bfloat16(values)
        kept, queries = (stored_keys, stored_values), rounded(qkv)
    kernels.attend_span(kind, qkv, row, length, *kept, slot, start, window, np.float32(0.3), y, crews[threads])
    for token in range(length):
        last = start + token + 1
        seen = slice(max(0, last - window) if window else 0, last)
        query, k, v = queries[row + token, :heads, None], keys[slot, :, seen], values[slot, :, seen]
        tensors = (torch.from_numpy(part)[None] for part in (query, k, v))
        attended = scaled_dot_product_attention(*tensors, scale=0.3, enable_gqa=True)[0, :, 0]
        assert y[row + token] == close(attended.numpy())
    assert (y[:row] == 7).all()
    assert (y[row + length :] == 7).all()


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("size", [2, 10, 64])
def test_tokens_kept_in_bfloat16_are_attended_to_as_what_they_then_are(
    size: int, rotary: bool, threads: int, crews: dict[int, Words]
) -> None:
    heads, kv_heads, positions = 6, 2, [3, 0, 40]
    cos, sin = tables(50, size) if rotary else (NO_TABLE, NO_TABLE)
    qkv, y = noise(3, heads + 2 * kv_heads, size), np.empty((3, heads, size), dtype=np.float32)
    (keys, all_keys), (values, all_values) = (bfloat16(noise(3, kv_heads, 50, size, seed=seed)) for seed in (1, 2))
    at = turned(qkv[:, : heads + kv_heads], cos, sin, positions) if rotary else qkv[:, : heads + kv_heads].copy()
    for row, position in enumerate(positions):
        all_keys[row, :, position] = rounded(np.ascontiguousarray(at[row, heads:]))
        all_values[row, :, position] = rounded(np.ascontiguousarray(qkv[row, heads + kv_heads :]))
    where = keys, values, np.arange(3), np.array(positions)
    if not rotary:
        kernels.store(BFLOAT16, qkv, 0, heads, cos, sin, *where)
    kernels.attend(BFLOAT16, qkv, 0, 3, cos, sin, *where, 0, np.float32(0.3), y, crews[threads])
    for row, position in enumerate(positions):
        query, k, v = (
            torch.from_numpy(part)[None]
            for part in (
                rounded(np.ascontiguousarray(at[row, :heads, None])),
                all_keys[row, :, : position + 1],
                all_values[row, :, : position + 1],
            )
        )
        attended = scaled_dot_product_attention(query, k, v, scale=0.3, enable_gqa=True)[0, :, 0]
        # A number of which rotation leaves another last bit may be rounded to its other neighbour.
        assert y[row] == close(attended.numpy(), 0.02 if rotary else 1e-5)
    assert keys[0, :, 4:].tolist() == bfloat16(noise(3, kv_heads, 50, size, seed=1))[0][0, :, 4:].tolist()
