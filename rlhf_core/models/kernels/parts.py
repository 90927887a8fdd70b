"""What is done of a task by whoever takes a part of it: the task stands in the words of a crew (words.py)."""

from __future__ import annotations

import functools
from typing import Any

import numba
import numpy as np
from numba import types

from rlhf_core.models.kernels.attention import attend_task, span_task
from rlhf_core.models.kernels.compiling import callback, compiled
from rlhf_core.models.kernels.draws import draw_row
from rlhf_core.models.kernels.intrinsics import add_to_word, float32_at, float64_at, from_bits, int32_at, int64_at
from rlhf_core.models.kernels.products import multiply_blocks
from rlhf_core.models.kernels.rows import gate_rows
from rlhf_core.models.kernels.tiles import BFLOAT16, FLOAT32
from rlhf_core.models.kernels.vectors import WORD
from rlhf_core.models.kernels.weighing import COLUMNS, weigh
from rlhf_core.models.kernels.words import ADD_WEIGHED, ATTEND, ATTEND_SPAN, COUNT, GATE, MADE, MULTIPLY, TASK, WORDS


@compiled
def _multiply_part(crew: Any, part: int) -> None:
    blocks, parts = (crew[TASK + 7] + 3) // 4, crew[COUNT]
    multiply_blocks(
        crew[TASK + 11],
        crew[TASK + 1],
        crew[TASK + 2],
        crew[TASK + 3],
        crew[TASK + 4],
        crew[TASK + 5],
        crew[TASK + 6],
        crew[TASK + 7],
        crew[TASK + 8],
        crew[TASK + 9],
        crew[TASK + 10],
        part * blocks // parts,
        (part + 1) * blocks // parts,
    )


@compiled
def _add_weighed_part(crew: Any, part: int) -> None:
    shares, rows, rank, values, size, y, parts = (
        crew[TASK + 1],
        crew[TASK + 2],
        crew[TASK + 3],
        crew[TASK + 4],
        crew[TASK + 5],
        crew[TASK + 6],
        crew[COUNT],
    )
    pieces = (size + COLUMNS - 1) // COLUMNS
    first, last = part * pieces // parts * COLUMNS, min(size, (part + 1) * pieces // parts * COLUMNS)
    stride, at = WORD * size, WORD * first
    weigh(FLOAT32, shares, WORD * rank, values + at, stride, rank, rows, last - first, y + at, stride)


@compiled
def _gate_part(crew: Any, part: int) -> None:
    rows, size, parts = crew[TASK + 2], crew[TASK + 3], crew[COUNT]
    both = numba.carray(float32_at(crew[TASK + 1]), (rows, 2 * size))
    y = numba.carray(float32_at(crew[TASK + 4]), (rows, size))
    gate_rows(both, y, part * rows // parts, (part + 1) * rows // parts)


@compiled
def _words_of(kind: int, size: int) -> int:
    return size // 2 if kind == BFLOAT16 else size


@compiled
def _attend_part(crew: Any, part: int) -> None:
    rows, heads, size, tasks, parts = crew[TASK + 2], crew[TASK + 16], crew[TASK + 17], crew[TASK + 18], crew[COUNT]
    kind = crew[TASK + 21]
    cached = (crew[TASK + 9], crew[TASK + 10], crew[TASK + 11], _words_of(kind, size))
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        attend_task(
            kind,
            numba.carray(float32_at(crew[TASK + 1]), (rows, crew[TASK + 3], size)),
            crew[TASK + 19],
            task,
            numba.carray(float32_at(crew[TASK + 4]), (crew[TASK + 6], size)),
            numba.carray(float32_at(crew[TASK + 5]), (crew[TASK + 6], size)),
            numba.carray(int32_at(crew[TASK + 7]), cached),
            numba.carray(int32_at(crew[TASK + 8]), cached),
            numba.carray(int64_at(crew[TASK + 20]), (rows,)),
            numba.carray(int64_at(crew[TASK + 12]), (rows,)),
            crew[TASK + 13],
            from_bits(np.int32(crew[TASK + 14])),
            numba.carray(float32_at(crew[TASK + 15]), (rows, heads, size)),
        )


@compiled
def _attend_span_part(crew: Any, part: int) -> None:
    heads, size, tasks, parts = crew[TASK + 14], crew[TASK + 15], crew[TASK + 16], crew[COUNT]
    kind, all_rows = crew[TASK + 17], crew[TASK + 2]
    cached = (crew[TASK + 8], crew[TASK + 9], _words_of(kind, size))
    for task in range(part * tasks // parts, (part + 1) * tasks // parts):
        span_task(
            kind,
            numba.carray(float32_at(crew[TASK + 1]), (all_rows, crew[TASK + 3], size)),
            crew[TASK + 4],
            crew[TASK + 5],
            task,
            numba.carray(int32_at(crew[TASK + 6]), cached),
            numba.carray(int32_at(crew[TASK + 7]), cached),
            crew[TASK + 10],
            crew[TASK + 11],
            from_bits(np.int32(crew[TASK + 12])),
            numba.carray(float32_at(crew[TASK + 13]), (all_rows, heads, size)),
        )


@compiled
def _draw_part(crew: Any, part: int) -> None:
    rows, parts = crew[TASK + 2], crew[COUNT]
    logits = numba.carray(float32_at(crew[TASK + 1]), (rows, crew[TASK + 3]))
    temperatures = numba.carray(float32_at(crew[TASK + 4]), (rows,))
    uniforms = numba.carray(float64_at(crew[TASK + 5]), (rows,))
    tokens = numba.carray(int64_at(crew[TASK + 6]), (rows,))
    logprobs = numba.carray(float32_at(crew[TASK + 7]), (rows,))
    for row in range(part * rows // parts, (part + 1) * rows // parts):
        tokens[row], logprobs[row] = draw_row(logits[row], temperatures[row], uniforms[row])


@compiled
def _do_part(crew: Any, part: int) -> None:
    if crew[TASK] == MULTIPLY:
        _multiply_part(crew, part)
    elif crew[TASK] == ADD_WEIGHED:
        _add_weighed_part(crew, part)
    elif crew[TASK] == GATE:
        _gate_part(crew, part)
    elif crew[TASK] == ATTEND:
        _attend_part(crew, part)
    elif crew[TASK] == ATTEND_SPAN:
        _attend_span_part(crew, part)
    else:
        _draw_part(crew, part)


def _do_part_at(place: int, part: int) -> None:
    _do_part(numba.carray(int64_at(place), (WORDS,)), part)
    # Not reached by one that failed: who called is not told otherwise.
    add_to_word(place, MADE, 1)


@functools.cache
def part_doer() -> int:
    """The address of what does a part of a task. Kernels call it there, so that it is compiled once and not into each
    of them."""
    return callback(types.void(types.intp, types.int64), _do_part_at)
