"""Each kernel against numbers worked by hand, and against torch over the shapes that its blocks do not divide."""

from __future__ import annotations

import gc
import math
import threading
from collections import Counter
from typing import Any

import numba
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from rlhf_core.models import kernels
from rlhf_core.models.fused import rotated
from rlhf_core.models.kernels.compiling import FLAGS
from rlhf_core.models.kernels.crew import Crew, Words
from rlhf_core.models.kernels.shared import COUNT, DONE, LAST_TURN, TICKET

Array = NDArray[np.float32]

KEPT = {hands: Crew(hands) for hands in (1, 2)}
ALONE = KEPT[1].words
NOTHING = np.zeros(0, dtype=np.float32)
NO_TABLE = np.zeros((0, 1), dtype=np.float32)
BELOW_ONE = 1.0 - 2.0**-53
PROBS = (0.4, 0.3, 0.15, 0.1, 0.05)


def array(*rows: Any) -> Array:
    return np.array(rows, dtype=np.float32)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def close(array: NDArray[Any], tolerance: float = 1e-5) -> Any:
    return pytest.approx(array, abs=tolerance, rel=tolerance)


def tables(positions: int, size: int) -> tuple[Array, Array]:
    """Rotary tables [positions, D] of angles drawn at random, `sin` with its first half negated."""
    angles = noise(positions, size // 2, seed=9) * 3
    return np.tile(np.cos(angles), 2), np.concatenate([-np.sin(angles), np.sin(angles)], axis=1)


def turned(heads: Array, cos: Array, sin: Array, positions: list[int]) -> Array:
    """heads [N, H, D] at `positions`, rotated as the fused forward does it."""
    at_each = [torch.from_numpy(table[positions])[:, None] for table in (cos, sin)]
    return rotated(torch.from_numpy(heads.copy()), *at_each).numpy()


@pytest.fixture(scope="module")
def crews() -> dict[int, Words]:
    """What kernels are told to have one thread compute, or two."""
    return {hands: KEPT[hands].muster() for hands in (1, 2)}


def test_a_product_of_five_outputs_is_what_the_hand_works_out() -> None:
    x = array([1, 2], [3, 4], [-1, 0])
    weight = array([1, 0], [0, 1], [1, 1], [2, -1], [0, 3])
    y = np.empty((3, 5), dtype=np.float32)
    kernels.multiply(x, weight, array(10, 20, 30, 40, 50), y, 0, ALONE)
    # Second row: 3 + 10, 4 + 20, 3 + 4 + 30, 2 * 3 - 4 + 40, 3 * 4 + 50.
    assert y.tolist() == [[11, 22, 33, 40, 56], [13, 24, 37, 42, 62], [9, 20, 29, 38, 50]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 3, 4, 5, 7, 64, 513])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64, 65, 129])
def test_products_are_torchs_and_leave_other_columns_alone(rows: int, outputs: int, bias: bool) -> None:
    x, weight = noise(rows, 37), noise(outputs, 37, seed=1)
    added = noise(outputs, seed=2) if bias else NOTHING
    y = np.full((rows, outputs + 5), 7.0, dtype=np.float32)
    kernels.multiply(x, weight, added, y, 2, ALONE)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + (added if bias else 0.0)
    assert y[:, 2:-3] == close(expected)
    assert (y[:, :2] == 7).all()
    assert (y[:, -3:] == 7).all()


@pytest.mark.parametrize(("rows", "outputs"), [(1, 513), (3, 64), (65, 7), (129, 5), (64, 513), (129, 3), (129, 1)])
def test_two_threads_multiply_exactly_as_one_does(rows: int, outputs: int, crews: dict[int, Words]) -> None:
    # 100 numbers a row: 1 x 513 outputs are past what is worth a thread, and the three that are not take one anyway.
    x, weight, bias = noise(rows, 100), noise(outputs, 100, seed=1), noise(outputs, seed=2)
    one, two = (np.empty((rows, outputs), dtype=np.float32) for _ in range(2))
    kernels.multiply(x, weight, bias, one, 0, ALONE)
    kernels.multiply(x, weight, bias, two, 0, crews[2])
    assert np.array_equal(one, two)


def test_a_row_is_multiplied_alike_whatever_stands_beside_it() -> None:
    x, weight = noise(1, 37), noise(64, 37, seed=1)
    alone, crowded = np.empty((1, 64), dtype=np.float32), np.empty((5, 64), dtype=np.float32)
    kernels.multiply(x, weight, NOTHING, alone, 0, ALONE)
    kernels.multiply(np.concatenate([noise(3, 37, seed=2), x, x]), weight, NOTHING, crowded, 0, ALONE)
    assert crowded[3:] == close(np.repeat(alone, 2, axis=0), 1e-6)


# Exponentials and gates


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


def test_a_gate_is_silu_times_what_it_lets_through() -> None:
    y = np.empty((1, 3), dtype=np.float32)
    kernels.gate(array([0.0, math.log(3), -math.log(3), 5.0, 2.0, 4.0]), y)
    # sigmoid(ln 3) = 3 / 4 and sigmoid(-ln 3) = 1 / 4: 2 * 3/4 ln 3, and 4 * -1/4 ln 3.
    assert y[0] == close(np.array([0.0, 1.5 * math.log(3), -math.log(3)]), 1e-6)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (2, 3), (5, 64), (3, 577)])
def test_gates_are_torchs(rows: int, size: int) -> None:
    both = noise(rows, 2 * size) * 8
    both[:, 0] = [200.0, -200.0, 90.0, -90.0, -87.0][:rows]
    y = np.empty((rows, size), dtype=np.float32)
    kernels.gate(both, y)
    gates, ups = torch.from_numpy(both).chunk(2, dim=-1)
    assert y == close((silu(gates) * ups).numpy(), 1e-6)


# Norms


def test_a_norm_divides_by_the_root_of_the_mean_square() -> None:
    y = np.empty((1, 2), dtype=np.float32)
    # (9 + 16) / 2 + 12.5 = 25, whose root is 5; the weights are 1 and 2.
    kernels.norm(array([3, 4]), array(1, 2), np.float32(12.5), y)
    assert y[0] == close(np.array([0.6, 1.6]), 1e-6)


def test_the_norm_of_a_sum_leaves_the_sum() -> None:
    x, y = array([1, 1]), np.empty((1, 2), dtype=np.float32)
    kernels.add_norm(x, array([2, 3]), array(1, 2), np.float32(12.5), y)
    assert x.tolist() == [[3, 4]]
    assert y[0] == close(np.array([0.6, 1.6]), 1e-6)


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (1, 576), (2, 5), (3, 32), (64, 33)])
def test_norms_are_torchs(rows: int, size: int) -> None:
    x, more, weight, y = noise(rows, size), noise(rows, size, seed=1), noise(size, seed=2), noise(rows, size)
    expected = rms_norm(torch.from_numpy(x), (size,), torch.from_numpy(weight), 1e-6).numpy()
    kernels.norm(x, weight, np.float32(1e-6), y)
    assert y == close(expected)
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


# Keys and values


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


# Attention


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


# Draws


def drawn(logits: Array, temperatures: Any, numbers: Any, crew: Words = ALONE) -> tuple[list[int], Array]:
    """Tokens and logprobs of the rows; a single temperature or number is for all."""
    rows = logits.shape[0]
    tokens, logprobs = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.float32)
    by_row = np.broadcast_to(np.asarray(temperatures, dtype=np.float32), rows).copy()
    kernels.draw(logits, by_row, np.broadcast_to(np.asarray(numbers, float), rows).copy(), tokens, logprobs, crew)
    return tokens.tolist(), logprobs


def test_a_token_is_the_first_at_which_the_running_sum_passes_the_number() -> None:
    # Running sums .4, .7, .85, .95, 1.
    numbers = [0.0, 0.39, 0.41, 0.69, 0.71, 0.86, 0.94, 0.96, BELOW_ONE]
    tokens, logprobs = drawn(np.tile(np.log(array(*PROBS)) + 3, (9, 1)).astype(np.float32), 1.0, numbers)
    assert tokens == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert logprobs == close(np.log([PROBS[token] for token in tokens]), 1e-6)


def test_a_temperature_divides_the_logits() -> None:
    # At 0.5 the shares are squares: .16, .09, .0225, .01, .0025 of .285, running sums .561, .877, .956, .991, 1.
    numbers = [0.55, 0.57, 0.87, 0.88, 0.95, 0.96, 0.99, 0.995]
    tokens, logprobs = drawn(np.tile(np.log(array(*PROBS)), (8, 1)).astype(np.float32), 0.5, numbers)
    assert tokens == [0, 1, 1, 2, 2, 3, 3, 4]
    assert logprobs == close(np.log([PROBS[token] ** 2 / 0.285 for token in tokens]))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 255), (255, 256), (300, 699)])
def test_greedy_takes_the_first_of_equal_maxima_whatever_the_number(first: int, second: int) -> None:
    logits = noise(3, 700)
    logits[:, [first, second]] = 9.0
    tokens, logprobs = drawn(logits, 0.0, [0.0, 0.5, BELOW_ONE])
    assert tokens == [first] * 3
    # The logprob is the policy's at temperature 1.
    assert logprobs == close(torch.from_numpy(logits).log_softmax(-1)[:, first].numpy())


@pytest.mark.parametrize("vocabulary", [2, 5, 256, 257, 700, 1024])
@pytest.mark.parametrize("number", [0.0, 0.5, BELOW_ONE])
def test_a_token_that_is_ruled_out_is_never_drawn(vocabulary: int, number: float) -> None:
    logits, dice = noise(300, vocabulary) * 3, np.random.default_rng(vocabulary)
    for row in logits:
        # One is left at least; in half of the rows, none at either end, whole blocks of them included.
        low, high = sorted(dice.integers(0, vocabulary, 2))
        row[:low] = row[high + 1 :] = -np.inf
        row[dice.random(vocabulary) < 0.3] = -np.inf
        row[low] = 0.0
    tokens, logprobs = drawn(logits, 1.0, number)
    assert np.isfinite(logits[range(300), tokens]).all()
    assert np.isfinite(logprobs).all()


@pytest.mark.parametrize("at", [0, 255, 256, 699])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_a_logit_that_is_not_a_number_or_infinite_draws_nothing(
    temperature: float, bad: float, at: int
) -> None:
    logits = noise(3, 700)
    logits[1, at] = bad
    tokens, _ = drawn(logits, temperature, 0.5)
    assert tokens[1] == -1
    assert tokens[::2] == drawn(logits[::2].copy(), temperature, 0.5)[0]


def test_a_row_without_any_token_draws_nothing() -> None:
    assert drawn(np.full((1, 300), -np.inf, dtype=np.float32), 1.0, 0.5)[0] == [-1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocabulary", [1, 5, 255, 256, 257, 1000, 4099])
def test_draws_invert_the_distribution_that_torch_computes(
    vocabulary: int, threads: int, crews: dict[int, Words]
) -> None:
    logits, dice = noise(60, vocabulary) * 3, np.random.default_rng(1)
    temperatures, numbers = np.tile(array(0.3, 1.0, 2.0), 20), dice.random(60)
    tokens, logprobs = drawn(logits, temperatures, numbers, crews[threads])
    expected = (torch.from_numpy(logits).double() / torch.from_numpy(temperatures)[:, None]).log_softmax(-1)
    sums = np.pad(expected.exp().cumsum(-1).numpy(), ((0, 0), (1, 0)))
    for row, (token, number) in enumerate(zip(tokens, numbers, strict=True)):
        assert sums[row, token] - 1e-6 <= number <= sums[row, token + 1] + 1e-6
    assert logprobs == close(expected.numpy()[range(60), tokens])


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    logits = noise(300, seed=3) * 2
    numbers = np.random.default_rng(4).random(40_000)
    counts = Counter(drawn(np.tile(logits, (40_000, 1)), 1.0, numbers)[0])
    expected = 40_000 * torch.from_numpy(logits).double().softmax(-1).numpy()
    likely = [token for token in range(300) if expected[token] >= 20]
    distance = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in likely)
    rest = 40_000 - sum(expected[token] for token in likely)
    distance += (40_000 - sum(counts[token] for token in likely) - rest) ** 2 / rest
    # Chi-square of k degrees has mean k and variance 2k; four deviations.
    assert distance < len(likely) + 4 * math.sqrt(2 * len(likely))


# Sharing


def test_a_late_helper_takes_nothing_of_a_task_that_is_not_yet_published() -> None:
    x, weight, y = noise(64, 64), noise(64, 64, seed=1), np.zeros((64, 64), dtype=np.float32)
    crew = Crew(2)
    words = crew.words
    kernels.multiply(x, weight, NOTHING, y, 0, words)
    before = words.copy()
    y[:] = 0
    # The caller has written the number of parts of its next task, and not yet its ticket.
    words[COUNT] += 6
    kernels.help_out(words, 1)
    assert words[TICKET] == before[TICKET]
    assert words[DONE] == before[DONE]
    assert not y.any()


def test_turns_begin_anew_where_their_number_ends() -> None:
    x, weight = noise(64, 64), noise(64, 64, seed=1)
    first, second = (np.zeros((64, 64), dtype=np.float32) for _ in range(2))
    crew = Crew(2)
    words = crew.words
    words[TICKET] = LAST_TURN << 32
    kernels.multiply(x, weight, NOTHING, first, 0, words)
    kernels.multiply(x, weight, NOTHING, second, 0, ALONE)
    assert words[TICKET] >> 32 == 0
    assert np.array_equal(first, second)


def test_many_tasks_in_turn_are_each_done_once_and_whole() -> None:
    crew, weight = Crew(3), noise(512, 64, seed=1)
    for number in range(2000):
        x = noise(1 + number % 3, 64, seed=number)
        y, expected = (np.zeros((len(x), 512), dtype=np.float32) for _ in range(2))
        kernels.multiply(x, weight, NOTHING, y, 0, crew.muster())
        kernels.multiply(x, weight, NOTHING, expected, 0, ALONE)
        assert np.array_equal(y, expected)


def test_helpers_end_with_their_crew() -> None:
    crew = Crew(3)
    mine = [thread for thread in threading.enumerate() if thread.name == "crew"][-2:]
    kernels.multiply(noise(64, 64), noise(64, 64), NOTHING, np.zeros((64, 64), np.float32), 0, crew.muster())
    del crew
    gc.collect()
    for thread in mine:
        thread.join(timeout=10)
        assert not thread.is_alive()
