"""Kernels whose work is cut into parts, for a crew of threads (crew.py): products, attention, draws.

A task is written into words that the whole crew reads, and its parts are taken one at a time by whoever is there: a
thread without a processor holds the others up with the part that it has, and no more. Little work is not cut.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from rlhf_core.models.kernels.attention import attend_task
from rlhf_core.models.kernels.compiling import compiled
from rlhf_core.models.kernels.draws import draw_row
from rlhf_core.models.kernels.intrinsics import (
    add_to_word,
    doze,
    float32_at,
    float64_at,
    from_bits,
    give_way,
    int32_at,
    int64_at,
    load_word,
    replace_word,
    store_word,
    to_bits,
)
from rlhf_core.models.kernels.products import multiply_blocks
from rlhf_core.models.kernels.products_bfloat16 import FEW_ROWS, multiply_blocks_bfloat16, split

ALONE: Final = 1 << 15
"""Multiplications for which a second thread is not worth waking: a few microseconds' work, or a few dozen where the
weights must come from memory."""
PARTS: Final = 4
"""Into which a task is cut for each thread."""
PATIENCE: Final = 2000
"""Looks at what a helper still has to do before others are let at the processor between two; some microseconds."""
AWAKE: Final = 60_000
"""Looks of a helper for the next task before it begins to doze between them: longer than what lies between two tasks of
a step."""
DOZE: Final = 50
"""Microseconds between two looks of a helper that dozes: nobody has to wake it, and it takes nothing from those who
need its processor."""

# The words of a crew, an int64 array: what several threads write stands far apart.
HANDS: Final = 0
"""Threads that work, the caller's own among them; none once the crew is dismissed."""
TICKET: Final = 8
"""Turn of the task in the upper half, parts that nobody has taken in the lower."""
LEFT: Final = 0xFFFFFFFF
LAST_TURN: Final = 0x7FFFFFFF
DONE: Final = 16
COUNT: Final = 24
TASK: Final = 25
WORDS: Final = 48
MULTIPLY, MULTIPLY_BFLOAT16, ATTEND, DRAW = 1, 2, 3, 4


@compiled
def _multiply_part(crew: Any, part: int) -> None:
    rows, inputs, outputs = crew[TASK + 2], crew[TASK + 3], crew[TASK + 5]
    blocks, parts = (outputs + 3) // 4, crew[COUNT]
    x = numba.carray(float32_at(crew[TASK + 1]), (rows, inputs))
    bias = numba.carray(float32_at(crew[TASK + 6]), (crew[TASK + 7],))
    y = numba.carray(float32_at(crew[TASK + 8]), (rows, crew[TASK + 9]))
    column, first, last = crew[TASK + 10], part * blocks // parts, (part + 1) * blocks // parts
    if crew[TASK] == MULTIPLY:
        weight = numba.carray(float32_at(crew[TASK + 4]), (outputs, inputs))
        multiply_blocks(x, weight, bias, y, column, first, last)
    else:
        words = numba.carray(int32_at(crew[TASK + 4]), (outputs, inputs // 2))
        multiply_blocks_bfloat16(x, words, bias, y, column, first, last)


@compiled
def _attend_part(crew: Any, part: int) -> None:
    rows, heads, size, tasks, parts = crew[TASK + 2], crew[TASK + 16], crew[TASK + 17], crew[TASK + 18], crew[COUNT]
    cached = (crew[TASK + 9], crew[TASK + 10], crew[TASK + 11], size)
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        attend_task(
            numba.carray(float32_at(crew[TASK + 1]), (rows, crew[TASK + 3], size)),
            crew[TASK + 19],
            task,
            numba.carray(float32_at(crew[TASK + 4]), (crew[TASK + 6], size)),
            numba.carray(float32_at(crew[TASK + 5]), (crew[TASK + 6], size)),
            numba.carray(float32_at(crew[TASK + 7]), cached),
            numba.carray(float32_at(crew[TASK + 8]), cached),
            numba.carray(int64_at(crew[TASK + 20]), (rows,)),
            numba.carray(int64_at(crew[TASK + 12]), (rows,)),
            crew[TASK + 13],
            from_bits(np.int32(crew[TASK + 14])),
            numba.carray(float32_at(crew[TASK + 15]), (rows, heads, size)),
        )


@compiled
def _draw_part(crew: Any, row: int) -> None:
    rows = crew[TASK + 2]
    logits = numba.carray(float32_at(crew[TASK + 1]), (rows, crew[TASK + 3]))
    temperatures = numba.carray(float32_at(crew[TASK + 4]), (rows,))
    uniforms = numba.carray(float64_at(crew[TASK + 5]), (rows,))
    tokens = numba.carray(int64_at(crew[TASK + 6]), (rows,))
    logprobs = numba.carray(float32_at(crew[TASK + 7]), (rows,))
    tokens[row], logprobs[row] = draw_row(logits[row], temperatures[row], uniforms[row])


@compiled
def _take_parts(crew: Any, turn: int) -> None:
    """Do parts of this turn's task until none is left.

    Nothing of a task is read before a part of it is taken, and a part is taken by the ticket alone: who took one knows
    that its task is whole, and stays until the part is done.
    """
    base = crew.ctypes.data
    while True:
        ticket = load_word(base, TICKET)
        part = (ticket & LEFT) - 1
        if ticket >> 32 != turn or part < 0:
            return
        if replace_word(base, TICKET, ticket, ticket - 1):
            if crew[TASK] <= MULTIPLY_BFLOAT16:
                _multiply_part(crew, part)
            elif crew[TASK] == ATTEND:
                _attend_part(crew, part)
            else:
                _draw_part(crew, part)
            add_to_word(base, DONE, 1)


@compiled
def _share(crew: Any, parts: int) -> None:
    """Have the task that stands in `crew` done in so many parts, by whoever of the crew is there; done on return.

    Parts are taken one at a time, so a thread without a processor holds nobody up but with the part that it has.
    """
    base = crew.ctypes.data
    crew[COUNT] = parts
    turn = ((load_word(base, TICKET) >> 32) + 1) & LAST_TURN
    store_word(base, DONE, 0)
    store_word(base, TICKET, (turn << 32) | parts)
    _take_parts(crew, turn)
    waited = 0
    while load_word(base, DONE) < parts:
        waited += 1
        if waited > PATIENCE:
            give_way()


@compiled
def help_out(crew: Any, idle: int) -> None:
    """Take part in tasks as they come, until none has come for so many looks, or the crew is dismissed."""
    base = crew.ctypes.data
    turn, looks = load_word(base, TICKET) >> 32, 0
    _take_parts(crew, turn)
    while looks < idle and load_word(base, HANDS) > 1:
        now = load_word(base, TICKET) >> 32
        if now != turn:
            turn, looks = now, 0
            _take_parts(crew, turn)
        else:
            looks += 1
            if looks > AWAKE:
                doze(DOZE)


@compiled
def _share_product(task: int, x: Any, weight: Any, bias: Any, y: Any, column: int, crew: Any) -> None:
    crew[TASK], crew[TASK + 1], crew[TASK + 2], crew[TASK + 3] = task, x.ctypes.data, x.shape[0], x.shape[1]
    crew[TASK + 4], crew[TASK + 5] = weight.ctypes.data, weight.shape[0]
    crew[TASK + 6], crew[TASK + 7] = bias.ctypes.data, bias.size
    crew[TASK + 8], crew[TASK + 9], crew[TASK + 10] = y.ctypes.data, y.shape[1], column
    _share(crew, min((weight.shape[0] + 3) // 4, PARTS * crew[HANDS]))


@compiled
def multiply(x: Any, weight: Any, bias: Any, y: Any, column: int, crew: Any) -> None:
    """y[:, column : column + M] = x [N, K] @ weight [M, K]^T + bias [M or 0].

    In blocks of four outputs by two rows: eight sums in registers, and each weight is read from memory once for
    ROWS_AT_ONCE rows.
    """
    if crew[HANDS] <= 1 or x.shape[0] * weight.size < ALONE:
        multiply_blocks(x, weight, bias, y, column, 0, (weight.shape[0] + 3) // 4)
    else:
        _share_product(MULTIPLY, x, weight, bias, y, column, crew)


@compiled
def multiply_bfloat16(x: Any, weight: Any, bias: Any, y: Any, column: int, crew: Any) -> None:
    """The same, of a weight in bfloat16, all else being float32: [M, K / 2] of int32, each the bits of two numbers that
    stand side by side, the first in the lower half. K is even."""
    if x.shape[0] <= FEW_ROWS and weight.shape[0] >= 4:
        x = split(x)
    if crew[HANDS] <= 1 or 2 * x.shape[0] * weight.size < ALONE:
        multiply_blocks_bfloat16(x, weight, bias, y, column, 0, (weight.shape[0] + 3) // 4)
    else:
        _share_product(MULTIPLY_BFLOAT16, x, weight, bias, y, column, crew)


@compiled
def attend(
    qkv: Any,
    first: int,
    last: int,
    cos: Any,
    sin: Any,
    keys: Any,
    values: Any,
    slots: Any,
    positions: Any,
    window: int,
    scaling: Any,
    y: Any,
    crew: Any,
) -> None:
    """Attention of the rows first..last-1, each a token of its slot: y = softmax(scaling q K^T) V (Vaswani et al.
    1706.03762) over the slot up to that token, its last `window` positions or all for 0.

    With tables, what `store` does for these rows is done on the way; no two of them may be of one slot then. Without,
    it has been done. slots and positions [N], y [N, H, D]. Each row reads as far as it sees and no further: nothing is
    masked.
    """
    tasks, seen = (last - first) * keys.shape[1], 0
    for row in range(first, last):
        seen += positions[row] + 1
    if crew[HANDS] <= 1 or tasks == 1 or 2 * seen * y.shape[1] * y.shape[2] < ALONE:
        for task in range(tasks):
            attend_task(qkv, first, task, cos, sin, keys, values, slots, positions, window, scaling, y)
        return
    crew[TASK], crew[TASK + 1], crew[TASK + 2], crew[TASK + 3] = ATTEND, qkv.ctypes.data, qkv.shape[0], qkv.shape[1]
    crew[TASK + 4], crew[TASK + 5], crew[TASK + 6] = cos.ctypes.data, sin.ctypes.data, cos.shape[0]
    crew[TASK + 7], crew[TASK + 8] = keys.ctypes.data, values.ctypes.data
    crew[TASK + 9], crew[TASK + 10], crew[TASK + 11] = keys.shape[0], keys.shape[1], keys.shape[2]
    crew[TASK + 12], crew[TASK + 13], crew[TASK + 14] = positions.ctypes.data, window, to_bits(scaling)
    crew[TASK + 15], crew[TASK + 16], crew[TASK + 17] = y.ctypes.data, y.shape[1], y.shape[2]
    crew[TASK + 18], crew[TASK + 19], crew[TASK + 20] = tasks, first, slots.ctypes.data
    _share(crew, min(tasks, PARTS * crew[HANDS]))


@compiled
def draw(logits: Any, temperatures: Any, uniforms: Any, tokens: Any, logprobs: Any, crew: Any) -> None:
    """Draw a token of each row of logits [N, V] by inverse transform: the first one at which the running sum of
    softmax(logits / temperature) passes the row's number in [0, 1); the most probable one for a temperature of 0,
    and none for one of LEFT_OUT.

    tokens [N] is -1 where a logit is NaN or infinite, though single ones may be -inf; logprobs [N] in nats, at
    temperature 1 for one of 0.
    """
    rows = logits.shape[0]
    if crew[HANDS] <= 1 or rows == 1 or logits.size < ALONE:
        for row in range(rows):
            tokens[row], logprobs[row] = draw_row(logits[row], temperatures[row], uniforms[row])
        return
    crew[TASK], crew[TASK + 1], crew[TASK + 2], crew[TASK + 3] = DRAW, logits.ctypes.data, rows, logits.shape[1]
    crew[TASK + 4], crew[TASK + 5] = temperatures.ctypes.data, uniforms.ctypes.data
    crew[TASK + 6], crew[TASK + 7] = tokens.ctypes.data, logprobs.ctypes.data
    _share(crew, rows)
