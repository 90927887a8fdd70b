"""Attention of tokens over their slots, and what is stored there for those to come.

Keys and values are arrays of 32-bit words: of a float32 number each, or of two in bfloat16, as a kind of tiles.py says.
Queries are rounded to bfloat16 where keys are.
"""

from __future__ import annotations

from typing import Any, Final

import numba
import numpy as np

from rlhf_core.models.kernels.compiling import LOWEST, ONE, ZERO, compiled, exp
from rlhf_core.models.kernels.intrinsics import float32_at, to_bfloat16
from rlhf_core.models.kernels.products import multiply_blocks, rounded
from rlhf_core.models.kernels.sums import total
from rlhf_core.models.kernels.tiles import BFLOAT16
from rlhf_core.models.kernels.weighing import weigh

SPAN_ROWS: Final = 16
"""Tokens of a prompt whose scores are worked out together, each with those that only the last of them sees."""


@compiled
def _rotate(x: Any, cos: Any, sin: Any) -> None:
    """Rotary embedding (Su et al. 2104.09864) of one head [D] in place; `sin` has its first half negated."""
    half = x.size // 2
    for j in range(half):
        low, high = x[j], x[j + half]
        x[j] = low * cos[j] + high * sin[j]
        x[j + half] = high * cos[j + half] + low * sin[j + half]


@compiled
def _keep(kind: int, x: Any, words: Any) -> None:
    """Write the numbers x [D] where they are kept."""
    if kind == BFLOAT16:
        numbers = words.view(np.int16)
        for j in range(x.size):
            numbers[j] = to_bfloat16(x[j])
    else:
        wide = words.view(np.float32)
        for j in range(x.size):
            wide[j] = x[j]


@compiled
def store(
    kind: int,
    qkv: Any,
    first: int,
    heads: int,
    cos: Any,
    sin: Any,
    keys: Any,
    values: Any,
    slots: Any,
    positions: Any,
) -> None:
    """Of the rows of qkv [N, H + 2 H_kv, D] from `first` on: queries and keys are rotated in place, keys and values
    stored at their slots' positions.

    Tables [positions, D], of no rows where nothing is rotated; keys and values [slots, H_kv, positions, words of
    D]; slots and positions [N].
    """
    kv_heads = keys.shape[1]
    for row in range(first, qkv.shape[0]):
        slot, position = slots[row], positions[row]
        if cos.shape[0]:
            for head in range(heads + kv_heads):
                _rotate(qkv[row, head], cos[position], sin[position])
        for head in range(kv_heads):
            _keep(kind, qkv[row, heads + head], keys[slot, head, position])
            _keep(kind, qkv[row, heads + kv_heads + head], values[slot, head, position])


@compiled
def _soften(scores: Any, scaling: Any) -> None:
    """scores [L] become softmax(scaling scores)."""
    most = LOWEST
    for at in range(scores.size):
        scores[at] *= scaling
        most = max(most, scores[at])
    for at in range(scores.size):
        scores[at] = exp(scores[at] - most)
    share = ONE / total(scores.ctypes.data, scores.size)
    for at in range(scores.size):
        scores[at] *= share


@compiled
def _score(kind: int, queries: Any, keys: Any, scores: Any) -> None:
    """scores [G, L] of queries [G, words of D] with keys [L, words of D]."""
    rows, length = scores.shape
    words, blocks = keys.shape[1], (length + 3) // 4
    x, to, step = queries.ctypes.data, scores.ctypes.data, 4 * scores.shape[1]
    multiply_blocks(kind, x, 4 * words, rows, words, keys.ctypes.data, words, length, 0, to, step, 0, blocks)


@compiled
def _weigh(kind: int, shares: Any, values: Any, size: int, y: int, stride: int) -> None:
    """Rows of `size` numbers, `stride` bytes apart from an address on, become shares [G, L] @ values [L, words]."""
    rows, length = shares.shape
    step = 4 * values.shape[1]
    for row in range(rows):
        numba.carray(float32_at(y + row * stride), (size,))[:] = ZERO
    weigh(kind, shares.ctypes.data, 4 * length, values.ctypes.data, step, length, rows, size, y, stride)


@compiled
def _words(kind: int, x: Any) -> Any:
    """x [N, D] as it is multiplied with what is kept."""
    return rounded(x) if kind == BFLOAT16 else x.view(np.int32)


@compiled
def attend_alike(kind: int, queries: Any, keys: Any, values: Any, scaling: Any, scores: Any, y: Any) -> None:
    """Queries [G, D] over keys and values [L, words], all of which each of them sees; scores [G, L] is for working."""
    _score(kind, _words(kind, queries), keys, scores)
    for row in range(scores.shape[0]):
        _soften(scores[row], scaling)
    _weigh(kind, scores, values, y.shape[1], y.ctypes.data, 4 * y.shape[1])


@compiled
def attend_task(
    kind: int,
    qkv: Any,
    first: int,
    task: int,
    cos: Any,
    sin: Any,
    keys: Any,
    values: Any,
    slots: Any,
    positions: Any,
    window: int,
    scaling: Any,
    y: Any,
) -> None:
    """One row's key head, and the queries that share it."""
    heads, kv_heads = y.shape[1], keys.shape[1]
    row, head = first + task // kv_heads, task % kv_heads
    low, high = head * heads // kv_heads, (head + 1) * heads // kv_heads
    slot, position = slots[row], positions[row]
    if cos.shape[0]:
        for query in range(low, high):
            _rotate(qkv[row, query], cos[position], sin[position])
        _rotate(qkv[row, heads + head], cos[position], sin[position])
        _keep(kind, qkv[row, heads + head], keys[slot, head, position])
        _keep(kind, qkv[row, heads + kv_heads + head], values[slot, head, position])
    end = position + 1
    start = max(0, end - window) if window else 0
    k, v = keys[slot, head, start:end], values[slot, head, start:end]
    scores = np.empty((high - low, end - start), dtype=np.float32)
    attend_alike(kind, qkv[row, low:high], k, v, scaling, scores, y[row, low:high])


@compiled
def span_task(
    kind: int,
    qkv: Any,
    row: int,
    rows: int,
    task: int,
    keys: Any,
    values: Any,
    start: int,
    window: int,
    scaling: Any,
    y: Any,
) -> None:
    """A few tokens of a prompt part and one head. The part's `rows` tokens stand in qkv [N, H + 2 H_kv, D] from `row`
    on, and in keys and values [H_kv, positions, words] of their slot from `start` on, where they have been stored."""
    heads, size = y.shape[1], y.shape[2]
    head, at = task % heads, task // heads * SPAN_ROWS
    count = min(SPAN_ROWS, rows - at)
    own = head * keys.shape[0] // heads
    # The first token's first position, and the last token's own.
    seen, end = max(0, start + at + 1 - window) if window else 0, start + at + count
    k, v = keys[own, seen:end], values[own, seen:end]
    scores = np.empty((count, end - seen), dtype=np.float32)
    queries = np.empty((count, qkv.shape[2]), dtype=np.float32)
    for each in range(count):
        queries[each] = qkv[row + at + each, head]
    _score(kind, _words(kind, queries), k, scores)
    for each in range(count):
        last = start + at + each + 1 - seen
        least = max(0, last - window) if window else 0
        _soften(scores[each, least:last], scaling)
        scores[each, :least] = ZERO
        scores[each, last:] = ZERO
    _weigh(kind, scores, v, size, y[row + at, head].ctypes.data, 4 * heads * size)
