"""The product of a few float32 rows with a weight that is held in bfloat16, two numbers to a word.

A number's bits in bfloat16 are the upper half of its bits in float32, so a shift or a mask makes it the float32 that it
is: weights take half the time to come from memory. For a few rows they are made so in registers and nowhere else; a
word holds two inputs that stand side by side, and the rows are split into the first of each pair and the second. For
more rows each weight is written down once, and read for all of them.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rlhf_core.models.kernels.compiling import ZERO, compiled
from rlhf_core.models.kernels.intrinsics import from_bits, prefetch
from rlhf_core.models.kernels.products import ROWS_AT_ONCE, four_outputs, multiply_blocks

FEW_ROWS: Final = 8
"""Rows up to which they are split, and no weight is written down."""
WORDS: Final = 32
"""Words of each of four rows that are multiplied between two looks ahead: two lines of the cache."""
_SHIFT: Final = np.int32(16)
_MASK: Final = np.int32(-65536)


@compiled
def _first(word: Any) -> Any:
    return from_bits(word << _SHIFT)


@compiled
def _second(word: Any) -> Any:
    return from_bits(word & _MASK)


@compiled
def split(x: Any) -> Any:
    """[N, K]: of each row of x the inputs of even number, then those of odd number."""
    halves = np.empty_like(x)
    half = x.shape[1] // 2
    for row in range(x.shape[0]):
        numbers, even, odd = x[row], halves[row, :half], halves[row, half:]
        for k in range(half):
            even[k], odd[k] = numbers[2 * k], numbers[2 * k + 1]
    return halves


@compiled
def _two_rows(halves: Any, row: int, weight: Any, at: int, bias: Any, y: Any, to: int) -> None:
    """The outputs at..at+3 of two rows."""
    w0, w1, w2, w3 = weight[at], weight[at + 1], weight[at + 2], weight[at + 3]
    even, odd, later_even, later_odd = halves[row, 0], halves[row, 1], halves[row + 1, 0], halves[row + 1, 1]
    s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
    t0, t1, t2, t3 = ZERO, ZERO, ZERO, ZERO
    for k in range(even.size):
        p, q, u, v = even[k], odd[k], later_even[k], later_odd[k]
        first, second = _first(w0[k]), _second(w0[k])
        s0 += p * first + q * second
        t0 += u * first + v * second
        first, second = _first(w1[k]), _second(w1[k])
        s1 += p * first + q * second
        t1 += u * first + v * second
        first, second = _first(w2[k]), _second(w2[k])
        s2 += p * first + q * second
        t2 += u * first + v * second
        first, second = _first(w3[k]), _second(w3[k])
        s3 += p * first + q * second
        t3 += u * first + v * second
    b0, b1, b2, b3 = ZERO, ZERO, ZERO, ZERO
    if bias.size:
        b0, b1, b2, b3 = bias[at], bias[at + 1], bias[at + 2], bias[at + 3]
    y[row, to], y[row, to + 1], y[row, to + 2], y[row, to + 3] = s0 + b0, s1 + b1, s2 + b2, s3 + b3
    y[row + 1, to], y[row + 1, to + 1], y[row + 1, to + 2], y[row + 1, to + 3] = t0 + b0, t1 + b1, t2 + b2, t3 + b3


@compiled
def _one_row(halves: Any, row: int, weight: Any, at: int, ahead: int, end: int, bias: Any, y: Any, to: int) -> None:
    """The outputs at..at+3 of one row. Meanwhile the memory from `ahead` to `end` is fetched, a line at a time: weights
    arrive no faster than they are multiplied, and neither may wait for the other."""
    w0, w1, w2, w3 = weight[at], weight[at + 1], weight[at + 2], weight[at + 3]
    even, odd = halves[row, 0], halves[row, 1]
    s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
    if bias.size:
        s0, s1, s2, s3 = bias[at], bias[at + 1], bias[at + 2], bias[at + 3]
    for start in range(0, even.size, WORDS):
        upto = min(end, ahead + 16 * WORDS)
        while ahead < upto:
            prefetch(ahead)
            ahead += 64
        for k in range(start, min(even.size, start + WORDS)):
            p, q = even[k], odd[k]
            s0 += p * _first(w0[k]) + q * _second(w0[k])
            s1 += p * _first(w1[k]) + q * _second(w1[k])
            s2 += p * _first(w2[k]) + q * _second(w2[k])
            s3 += p * _first(w3[k]) + q * _second(w3[k])
    y[row, to], y[row, to + 1], y[row, to + 2], y[row, to + 3] = s0, s1, s2, s3


@compiled
def _multiply_few_rows(halves: Any, weight: Any, bias: Any, y: Any, column: int, at: int, ahead: int, end: int) -> None:
    """The outputs at..at+3 of all rows, while the memory from `ahead` to `end` is fetched."""
    rows = halves.shape[0]
    share = (end - ahead) // max(1, rows // 2) + 64
    for row in range(0, rows - 1, 2):
        upto = min(end, ahead + share)
        while ahead < upto:
            prefetch(ahead)
            ahead += 64
        _two_rows(halves, row, weight, at, bias, y, column + at)
    if rows % 2:
        _one_row(halves, rows - 1, weight, at, ahead, end, bias, y, column + at)


@compiled
def _widen(numbers: Any, at: int, wide: Any) -> None:
    """The rows `at` and so on of [M, K] bits as float32, as many as `wide` [., K] has."""
    for output in range(wide.shape[0]):
        bits, to = numbers[at + output], wide[output]
        for k in range(to.size):
            to[k] = from_bits(np.int32(bits[k]) << _SHIFT)


@compiled
def multiply_blocks_bfloat16(x: Any, weight: Any, bias: Any, y: Any, column: int, first: int, last: int) -> None:
    """Blocks first..last-1 of four outputs each, or all outputs where there are fewer. weight [M, K / 2] of int32; x
    [N, K], as `split` makes it for up to FEW_ROWS rows and four outputs or more."""
    rows, outputs, inputs = x.shape[0], weight.shape[0], x.shape[1]
    numbers = weight.view(np.uint16)
    wide = np.empty((min(4, outputs), inputs), dtype=np.float32)
    if outputs < 4:
        _widen(numbers, 0, wide)
        multiply_blocks(x, wide, bias, y, column, first, last)
        return
    halves = x.reshape(rows, 2, inputs // 2)
    begin, size = weight.ctypes.data, 8 * inputs
    for top in range(0, rows, ROWS_AT_ONCE):
        bottom = min(rows, top + ROWS_AT_ONCE)
        for block in range(first, last):
            # The last block overlaps the one before it where the outputs are no multiple of four.
            at = min(4 * block, outputs - 4)
            ahead = begin + at * size // 4 + size
            end = min(begin + 4 * weight.size, ahead + size)
            if rows <= FEW_ROWS:
                _multiply_few_rows(halves, weight, bias, y, column, at, ahead, end)
            else:
                _widen(numbers, at, wide)
                four_outputs(x, top, bottom, wide, 0, ahead, end, bias, at, y, column + at)
