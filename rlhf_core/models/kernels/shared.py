"""Kernels whose work is cut into parts, for a crew of threads (crew.py): products, attention, draws.

A task is written into words that the whole crew reads, and its parts are taken one at a time by whoever is there: a
thread without a processor holds the others up with the part that it has, and no more. Little work is not cut.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rlhf_core.models.kernels.attention import SPAN_ROWS
from rlhf_core.models.kernels.compiling import compiled
from rlhf_core.models.kernels.intrinsics import (
    add_to_word,
    call_at,
    doze,
    give_way,
    load_word,
    replace_word,
    store_word,
    to_bits,
)
from rlhf_core.models.kernels.products import rounded, split
from rlhf_core.models.kernels.tiles import BFLOAT16, FLOAT32, WIDENED
from rlhf_core.models.kernels.weighing import COLUMNS
from rlhf_core.models.kernels.words import (
    ADD_WEIGHED,
    ATTEND,
    ATTEND_SPAN,
    COUNT,
    DOER,
    DONE,
    DRAW,
    GATE,
    HANDS,
    LAST_TURN,
    LEFT,
    MADE,
    MULTIPLY,
    TASK,
    TICKET,
)

ALONE: Final = 1 << 15
"""Multiplications for which a second thread is not worth waking: a few microseconds' work, or a few dozen where the
weights must come from memory."""
EXPONENTIAL: Final = 8
"""Multiplications that take as long as one."""
PARTS: Final = 4
"""Into which a task is cut for each thread at least."""
PART: Final = 1 << 22
"""Multiplications of a part of a large task, some forty microseconds: who is done first waits for the others' last."""
PATIENCE: Final = 2000
"""Looks at what a helper still has to do before others are let at the processor between two; some microseconds."""
AWAKE: Final = 60_000
"""Looks of a helper for the next task before it begins to doze between them: longer than what lies between two tasks of
a step."""
DOZE: Final = 50
"""Microseconds between two looks of a helper that dozes: nobody has to wake it, and it takes nothing from those who
need its processor."""


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
            call_at(crew[DOER], base, part)
            add_to_word(base, DONE, 1)


@compiled
def _in_parts(crew: Any, parts: int) -> None:
    base = crew.ctypes.data
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
def _share(crew: Any, work: int, pieces: int) -> None:
    """Have the task that stands in `crew` done, of so many multiplications and so many pieces that could be parts, by
    whoever of the crew is there; done on return.

    Parts are taken one at a time, so a thread without a processor holds nobody up but with the part that it has. Raises
    MemoryError where one found none.
    """
    base = crew.ctypes.data
    parts = min(pieces, max(PARTS * crew[HANDS], work // PART))
    if crew[HANDS] <= 1 or work < ALONE:
        parts = 1
    crew[COUNT] = parts
    store_word(base, MADE, 0)
    if parts == 1:
        call_at(crew[DOER], base, 0)
    else:
        _in_parts(crew, parts)
    if load_word(base, MADE) < parts:
        raise MemoryError("no memory was left for a part of the work")


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
def _multiply(kind: int, x: Any, weight: Any, bias: Any, y: Any, column: int, crew: Any) -> None:
    """In blocks of four outputs: each weight is read from memory once for ROWS_AT_ONCE rows."""
    rows, blocks = x.shape[0], (weight.shape[0] + 3) // 4
    numbers = weight.size if kind == FLOAT32 else 2 * weight.size
    sizes = rows, x.shape[1], weight.ctypes.data, weight.shape[1], weight.shape[0]
    where = bias.ctypes.data if bias.size else 0, y.ctypes.data + 4 * column, 4 * y.shape[1]
    place, stride = x.ctypes.data, 4 * x.shape[1]
    crew[TASK], crew[TASK + 1], crew[TASK + 2] = MULTIPLY, place, stride
    crew[TASK + 3], crew[TASK + 4], crew[TASK + 5], crew[TASK + 6], crew[TASK + 7] = sizes
    crew[TASK + 8], crew[TASK + 9], crew[TASK + 10] = where
    crew[TASK + 11] = kind
    _share(crew, rows * numbers, blocks)


@compiled
def multiply(x: Any, weight: Any, bias: Any, y: Any, column: int, crew: Any) -> None:
    """y[:, column : column + M] = x [N, K] @ weight [M, K]^T + bias [M or 0]."""
    _multiply(FLOAT32, x, weight, bias, y, column, crew)


@compiled
def multiply_widened(x: Any, weight: Any, bias: Any, y: Any, column: int, crew: Any) -> None:
    """The same, of a weight in bfloat16, all else being float32: [M, K / 2] of int32, each the bits of two numbers that
    stand side by side, the first in the lower half. K is even."""
    _multiply(WIDENED, split(x), weight, bias, y, column, crew)


@compiled
def multiply_bfloat16(x: Any, weight: Any, bias: Any, y: Any, column: int, crew: Any) -> None:
    """The same with inputs rounded to bfloat16, as a processor that has it multiplies it; sums are in float32."""
    _multiply(BFLOAT16, rounded(x), weight, bias, y, column, crew)


@compiled
def _add_weighed(shares: Any, values: Any, y: Any, crew: Any) -> None:
    """y [N, M] += shares [N, R] @ values [R, M]."""
    crew[TASK], crew[TASK + 1] = ADD_WEIGHED, shares.ctypes.data
    crew[TASK + 2], crew[TASK + 3] = shares.shape
    crew[TASK + 4], crew[TASK + 5], crew[TASK + 6] = values.ctypes.data, values.shape[1], y.ctypes.data
    _share(crew, shares.size * values.shape[1], (values.shape[1] + COLUMNS - 1) // COLUMNS)


@compiled
def add_low_rank(x: Any, down: Any, up: Any, y: Any, crew: Any) -> None:
    """y [N, M] += x [N, K] @ down [R, K]^T @ up [R, M]: LoRA's term (Hu et al. 2106.09685)."""
    narrow = np.empty((x.shape[0], down.shape[0]), dtype=np.float32)
    _multiply(FLOAT32, x, down, narrow[0, :0], narrow, 0, crew)
    _add_weighed(narrow, up, y, crew)


@compiled
def gate(both: Any, y: Any, crew: Any) -> None:
    """y [N, M] = silu(gate) * up of both [N, 2 M] (SwiGLU, Shazeer 2002.05202)."""
    crew[TASK], crew[TASK + 1], crew[TASK + 2], crew[TASK + 3] = GATE, both.ctypes.data, y.shape[0], y.shape[1]
    crew[TASK + 4] = y.ctypes.data
    _share(crew, EXPONENTIAL * y.size, y.shape[0])


@compiled
def attend(
    kind: int,
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
    it has been done. Keys and values are kept as attention.py has it; slots and positions [N], y [N, H, D]. Each row
    reads as far as it sees and no further: nothing is masked.
    """
    tasks, seen = (last - first) * keys.shape[1], 0
    for row in range(first, last):
        seen += positions[row] + 1
    crew[TASK], crew[TASK + 1], crew[TASK + 2], crew[TASK + 3] = ATTEND, qkv.ctypes.data, qkv.shape[0], qkv.shape[1]
    crew[TASK + 4], crew[TASK + 5], crew[TASK + 6] = cos.ctypes.data, sin.ctypes.data, cos.shape[0]
    crew[TASK + 7], crew[TASK + 8] = keys.ctypes.data, values.ctypes.data
    crew[TASK + 9], crew[TASK + 10], crew[TASK + 11] = keys.shape[0], keys.shape[1], keys.shape[2]
    crew[TASK + 12], crew[TASK + 13], crew[TASK + 14] = positions.ctypes.data, window, to_bits(scaling)
    crew[TASK + 15], crew[TASK + 16], crew[TASK + 17] = y.ctypes.data, y.shape[1], y.shape[2]
    crew[TASK + 18], crew[TASK + 19], crew[TASK + 20] = tasks, first, slots.ctypes.data
    crew[TASK + 21] = kind
    _share(crew, 2 * seen * y.shape[1] * y.shape[2], tasks)


@compiled
def attend_span(
    kind: int,
    qkv: Any,
    row: int,
    rows: int,
    keys: Any,
    values: Any,
    slot: int,
    start: int,
    window: int,
    scaling: Any,
    y: Any,
    crew: Any,
) -> None:
    """The same of a prompt part: `rows` rows from `row` on are the tokens of one slot from position `start` on, and
    have been stored. y [N, H, D]; a token sees those before it and itself."""
    own_keys, own_values = keys[slot], values[slot]
    heads, size = y.shape[1], y.shape[2]
    tasks = (rows + SPAN_ROWS - 1) // SPAN_ROWS * heads
    crew[TASK], crew[TASK + 1], crew[TASK + 2], crew[TASK + 3] = (
        ATTEND_SPAN,
        qkv.ctypes.data,
        qkv.shape[0],
        qkv.shape[1],
    )
    crew[TASK + 4], crew[TASK + 5] = row, rows
    crew[TASK + 6], crew[TASK + 7] = own_keys.ctypes.data, own_values.ctypes.data
    crew[TASK + 8], crew[TASK + 9] = own_keys.shape[0], own_keys.shape[1]
    crew[TASK + 10], crew[TASK + 11], crew[TASK + 12] = start, window, to_bits(scaling)
    crew[TASK + 13], crew[TASK + 14], crew[TASK + 15], crew[TASK + 16] = y.ctypes.data, heads, size, tasks
    crew[TASK + 17] = kind
    _share(crew, 2 * rows * (start + rows) * heads * size, tasks)


@compiled
def draw(logits: Any, temperatures: Any, uniforms: Any, tokens: Any, logprobs: Any, crew: Any) -> None:
    """Draw a token of each row of logits [N, V] by inverse transform: the first one at which the running sum of
    softmax(logits / temperature) passes the row's number in [0, 1); the most probable one for a temperature of 0,
    and none for one of LEFT_OUT.

    tokens [N] is -1 where a logit is NaN or infinite, though single ones may be -inf; logprobs [N] in nats, at
    temperature 1 for one of 0.
    """
    rows = logits.shape[0]
    crew[TASK], crew[TASK + 1], crew[TASK + 2], crew[TASK + 3] = DRAW, logits.ctypes.data, rows, logits.shape[1]
    crew[TASK + 4], crew[TASK + 5] = temperatures.ctypes.data, uniforms.ctypes.data
    crew[TASK + 6], crew[TASK + 7] = tokens.ctypes.data, logprobs.ctypes.data
    _share(crew, logits.size, rows)
