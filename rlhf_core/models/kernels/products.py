"""The product of a few rows with a weight."""

from __future__ import annotations

from typing import Any, Final

from rlhf_core.models.kernels.compiling import ZERO, compiled
from rlhf_core.models.kernels.intrinsics import prefetch

ROWS_AT_ONCE: Final = 64
"""So many rows of a product stay near the processor while its weights pass by."""


@compiled
def four_outputs(
    x: Any, top: int, bottom: int, weight: Any, at: int, ahead: int, end: int, bias: Any, out: int, y: Any, to: int
) -> None:
    """Outputs out..out+3, whose weights are the rows at..at+3, of the rows top..bottom-1 of x, two of them at a time
    and then the odd one. Meanwhile the memory from `ahead` to `end` is fetched, a part at a time."""
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
def _multiply_few(x: Any, weight: Any, bias: Any, y: Any, column: int) -> None:
    """For fewer than four outputs."""
    for row in range(x.shape[0]):
        for output in range(weight.shape[0]):
            total = bias[output] if bias.size else ZERO
            for k in range(x.shape[1]):
                total += x[row, k] * weight[output, k]
            y[row, column + output] = total


@compiled
def multiply_blocks(x: Any, weight: Any, bias: Any, y: Any, column: int, first: int, last: int) -> None:
    """Blocks first..last-1 of four outputs each."""
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
            # The next block's weights are fetched while this one's are multiplied.
            ahead = begin + at * size // 4 + size
            end = min(begin + 4 * weight.size, ahead + size)
            four_outputs(x, top, bottom, weight, at, ahead, end, bias, at, y, column + at)
