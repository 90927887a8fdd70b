"""The product of rows with a weight, a tile at a time."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rlhf_core.models.kernels.compiling import compiled
from rlhf_core.models.kernels.intrinsics import to_bfloat16
from rlhf_core.models.kernels.tiles import FLOAT32, MOST_ROWS, OUTPUTS, WIDENED, make_tile, split_row, widen_row
from rlhf_core.models.kernels.vectors import LANES, WIDE, WORD

ROWS_AT_ONCE: Final = 64
"""So many rows of a product stay near the processor while its weights pass by."""
FEW_ROWS: Final = ROWS_AT_ONCE if WIDE else 8
"""Rows up to which weights in bfloat16 are made float32 in registers and nowhere else. For more each is written down
once and read for all of them; where tiles are low, that pays sooner."""
BLOCKS_AHEAD: Final = 2
"""How far beyond a block's weights those lie that are fetched meanwhile."""

_NOTHING: Final = np.zeros(OUTPUTS, dtype=np.float32)
"""Biases where there are none. Of the module's own, so that it stays where it is while its address is used."""

_tile = make_tile(OUTPUTS, fetched=0)
_tile_and_half = make_tile(OUTPUTS, fetched=OUTPUTS // 2)
_tile_and_all = make_tile(OUTPUTS, fetched=OUTPUTS)
_one_output = make_tile(1, fetched=0)


@compiled
def split(x: Any) -> Any:
    """x [N, K] as WIDENED has it: [N, a multiple of two vectors]."""
    pair = 2 * LANES
    halves = np.empty((x.shape[0], (x.shape[1] + pair - 1) // pair * pair), dtype=np.float32)
    for row in range(x.shape[0]):
        split_row(x[row].ctypes.data, x.shape[1], halves[row].ctypes.data)
    return halves


@compiled
def rounded(x: Any) -> Any:
    """x [N, K] in bfloat16, the nearest there is, of two the even one: [N, K / 2] of int32, two numbers to a word."""
    words = np.empty((x.shape[0], x.shape[1] // 2), dtype=np.int32)
    numbers = words.view(np.int16)
    for row in range(x.shape[0]):
        to, own = numbers[row], x[row]
        for k in range(own.size):
            to[k] = to_bfloat16(own[k])
    return words


@compiled
def _few_outputs(
    kind: int,
    x: int,
    x_stride: int,
    rows: int,
    weight: int,
    words: int,
    outputs: int,
    bias: int,
    y: int,
    y_stride: int,
) -> None:
    """For fewer than a tile has."""
    for row in range(rows):
        for output in range(outputs):
            own, added = x + row * x_stride, bias + WORD * output if bias else _NOTHING.ctypes.data
            w, to = weight + WORD * words * output, y + row * y_stride + WORD * output
            _one_output(kind, 1, own, x_stride, w, WORD * words, words, 0, added, to, y_stride)


@compiled
def multiply_blocks(
    kind: int,
    x: int,
    x_stride: int,
    rows: int,
    inputs: int,
    weight: int,
    words: int,
    outputs: int,
    bias: int,
    y: int,
    y_stride: int,
    first: int,
    last: int,
) -> None:
    """Blocks first..last-1 of four outputs each, or all outputs where there are fewer, as tiles.py has the kinds.

    Places are addresses, strides in bytes. `inputs` and `words` are the 32-bit words of a row of x and of the weight;
    `bias` is the place of as many numbers as outputs, or 0.
    """
    if outputs < OUTPUTS:
        _few_outputs(kind, x, x_stride, rows, weight, words, outputs, bias, y, y_stride)
        return
    wide = np.empty((OUTPUTS, inputs if kind == WIDENED and rows > FEW_ROWS else 0), dtype=np.float32)
    for top in range(0, rows, ROWS_AT_ONCE):
        bottom = min(rows, top + ROWS_AT_ONCE)
        for block in range(first, last):
            # The last block overlaps the one before it where the outputs are no multiple of four.
            at = min(OUTPUTS * block, outputs - OUTPUTS)
            added, to = bias + WORD * at if bias else _NOTHING.ctypes.data, y + WORD * at
            one, w, size = kind, weight + at * WORD * words, words
            # Of the weights to come, two tiles fetch half each if there are two: none may only wait, or only multiply.
            coming, half = w + BLOCKS_AHEAD * OUTPUTS * WORD * words, OUTPUTS * WORD * words // 2
            if wide.size:
                for output in range(OUTPUTS):
                    widen_row(w + output * WORD * words, words, wide[output].ctypes.data)
                one, w, size = FLOAT32, wide.ctypes.data, inputs
            w_stride = WORD * size
            for row in range(top, bottom, MOST_ROWS):
                count, own, out = min(MOST_ROWS, bottom - row), x + row * x_stride, to + row * y_stride
                if bottom - top <= MOST_ROWS:
                    _tile_and_all(one, count, own, x_stride, w, w_stride, size, coming, added, out, y_stride)
                elif row < top + 2 * MOST_ROWS:
                    _tile_and_half(one, count, own, x_stride, w, w_stride, size, coming, added, out, y_stride)
                    coming += half
                else:
                    _tile(one, count, own, x_stride, w, w_stride, size, 0, added, out, y_stride)
