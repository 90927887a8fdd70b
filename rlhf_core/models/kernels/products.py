"""The product of a few rows with a weight.

A weight may be held in bfloat16, as its bits: the upper half of a float32's. It is multiplied as the float32 that it
is, and takes half the time to come from memory.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rlhf_core.models.kernels.compiling import ZERO, compiled
from rlhf_core.models.kernels.intrinsics import from_bits, prefetch

ROWS_AT_ONCE: Final = 64
"""So many rows of a product stay near the processor while its weights pass by."""
LINES: Final = 64
"""Weights of each of four rows that are multiplied between two looks ahead: two lines of the cache, in bfloat16."""
_HALF: Final = np.int32(16)


@compiled
def _four_outputs(
    x: Any, top: int, bottom: int, weight: Any, at: int, ahead: int, end: int, bias: Any, out: int, y: Any, to: int
) -> None:
    """Outputs out..out+3, of the rows `at` to `at` + 3 of a float32 weight, of the rows top..bottom-1: two of them at
    a time and then the odd one. Meanwhile the memory from `ahead` to `end` is fetched, a part at a time."""
    w0, w1, w2, w3 = weight[at], weight[at + 1], weight[at + 2], weight[at + 3]
    b0, b1, b2, b3 = ZERO, ZERO, ZERO, ZERO
    if bias.size:
        b0, b1, b2, b3 = bias[out], bias[out + 1], bias[out + 2], bias[out + 3]
    share = (end - ahead) // max(1, (bottom - top) // 2) + 64
    for row in range(top, bottom - 1, 2):
        upto = min(end, ahead + share)
        while ahead < upto:
            prefetch(ahead)
            ahead += 64
        x0, x1 = x[row], x[row + 1]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        t0, t1, t2, t3 = ZERO, ZERO, ZERO, ZERO
        for k in range(x0.size):
            p, q = x0[k], x1[k]
            s0 += p * w0[k]
            s1 += p * w1[k]
            s2 += p * w2[k]
            s3 += p * w3[k]
            t0 += q * w0[k]
            t1 += q * w1[k]
            t2 += q * w2[k]
            t3 += q * w3[k]
        y[row, to], y[row, to + 1], y[row, to + 2], y[row, to + 3] = s0 + b0, s1 + b1, s2 + b2, s3 + b3
        y[row + 1, to], y[row + 1, to + 1], y[row + 1, to + 2], y[row + 1, to + 3] = t0 + b0, t1 + b1, t2 + b2, t3 + b3
    if (bottom - top) % 2:
        row = bottom - 1
        x0 = x[row]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for k in range(x0.size):
            p = x0[k]
            s0 += p * w0[k]
            s1 += p * w1[k]
            s2 += p * w2[k]
            s3 += p * w3[k]
        y[row, to], y[row, to + 1], y[row, to + 2], y[row, to + 3] = s0 + b0, s1 + b1, s2 + b2, s3 + b3


@compiled
def _widened(bits: Any) -> Any:
    """The number whose bits in bfloat16 these are."""
    return from_bits(np.int32(bits) << _HALF)


@compiled
def _four_outputs_of_one(x: Any, weight: Any, at: int, bias: Any, y: Any, to: int) -> None:
    """The outputs at..at+3 of one row, of a bfloat16 weight's bits. Weights arrive no faster than they are multiplied:
    those four rows on are fetched a line at a time, so that neither waits for the other."""
    w0, w1, w2, w3 = weight[at], weight[at + 1], weight[at + 2], weight[at + 3]
    s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
    if bias.size:
        s0, s1, s2, s3 = bias[at], bias[at + 1], bias[at + 2], bias[at + 3]
    ahead = weight.ctypes.data + 2 * (at + 4) * x.size
    end = weight.ctypes.data + 2 * weight.size
    for first in range(0, x.size, LINES):
        upto = min(end, ahead + 8 * LINES)
        while ahead < upto:
            prefetch(ahead)
            ahead += 64
        for k in range(first, min(x.size, first + LINES)):
            p = x[k]
            s0 += p * _widened(w0[k])
            s1 += p * _widened(w1[k])
            s2 += p * _widened(w2[k])
            s3 += p * _widened(w3[k])
    y[to], y[to + 1], y[to + 2], y[to + 3] = s0, s1, s2, s3


@compiled
def _widen(weight: Any, at: int, rows: int, wide: Any) -> None:
    """Rows `at` to at+rows-1 of a bfloat16 weight's bits as float32, into `wide` [rows, K]."""
    for row in range(rows):
        bits, numbers = weight[at + row], wide[row]
        for k in range(numbers.size):
            numbers[k] = _widened(bits[k])


@compiled
def _multiply_few(x: Any, weight: Any, bias: Any, y: Any, column: int) -> None:
    """For fewer than four outputs, of a float32 weight."""
    for row in range(x.shape[0]):
        for output in range(weight.shape[0]):
            total = bias[output] if bias.size else ZERO
            for k in range(x.shape[1]):
                total += x[row, k] * weight[output, k]
            y[row, column + output] = total


@compiled
def multiply_blocks(x: Any, weight: Any, bias: Any, y: Any, column: int, first: int, last: int) -> None:
    """Blocks first..last-1 of four outputs each, of a weight in float32."""
    rows, outputs = x.shape[0], weight.shape[0]
    if outputs < 4:
        _multiply_few(x, weight, bias, y, column)
        return
    begin, size = weight.ctypes.data, 16 * x.shape[1]
    for top in range(0, rows, ROWS_AT_ONCE):
        bottom = min(rows, top + ROWS_AT_ONCE)
        for block in range(first, last):
            # The last block overlaps the one before it where the outputs are no multiple of four.
            at = min(4 * block, outputs - 4)
            ahead = begin + at * size // 4 + size
            end = min(begin + 4 * weight.size, ahead + size)
            _four_outputs(x, top, bottom, weight, at, ahead, end, bias, at, y, column + at)


@compiled
def multiply_blocks_bfloat16(x: Any, weight: Any, bias: Any, y: Any, column: int, first: int, last: int) -> None:
    """The same, of a weight's bits in bfloat16: each block is widened once for ROWS_AT_ONCE rows."""
    rows, outputs = x.shape[0], weight.shape[0]
    wide = np.empty((min(4, outputs), x.shape[1]), dtype=np.float32)
    if outputs < 4:
        _widen(weight, 0, outputs, wide)
        _multiply_few(x, wide, bias, y, column)
        return
    begin, size = weight.ctypes.data, 8 * x.shape[1]
    for top in range(0, rows, ROWS_AT_ONCE):
        bottom = min(rows, top + ROWS_AT_ONCE)
        for block in range(first, last):
            at = min(4 * block, outputs - 4)
            if bottom - top == 1:
                _four_outputs_of_one(x[top], weight, at, bias, y[top], column + at)
                continue
            _widen(weight, at, 4, wide)
            ahead = begin + at * size // 4 + size
            end = min(begin + 2 * weight.size, ahead + size)
            _four_outputs(x, top, bottom, wide, 0, ahead, end, bias, at, y, column + at)
