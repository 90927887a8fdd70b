"""Attention of single tokens over their slots, and what is stored there for those to come."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_core.models.kernels.compiling import LOWEST, ZERO, compiled, exp


@compiled
def _rotate(x: Any, cos: Any, sin: Any) -> None:
    """Rotary embedding (Su et al. 2104.09864) of one head [D] in place; `sin` has its first half negated."""
    half = x.size // 2
    for j in range(half):
        low, high = x[j], x[j + half]
        x[j] = low * cos[j] + high * sin[j]
        x[j + half] = high * cos[j + half] + low * sin[j + half]


@compiled
def store(
    qkv: Any, first: int, heads: int, cos: Any, sin: Any, keys: Any, values: Any, slots: Any, positions: Any
) -> None:
    """Of the rows of qkv [N, H + 2 H_kv, D] from `first` on: queries and keys are rotated in place, keys and values
    stored at their slots' positions.

    Tables [positions, D], of no rows where nothing is rotated; keys and values [slots, H_kv, positions, D]; slots and
    positions [N].
    """
    kv_heads = keys.shape[1]
    for row in range(first, qkv.shape[0]):
        slot, position = slots[row], positions[row]
        if cos.shape[0]:
            for head in range(heads + kv_heads):
                _rotate(qkv[row, head], cos[position], sin[position])
        for head in range(kv_heads):
            keys[slot, head, position] = qkv[row, heads + head]
            values[slot, head, position] = qkv[row, heads + kv_heads + head]


@compiled
def attend_one(query: Any, keys: Any, values: Any, scaling: Any, scores: Any, y: Any) -> None:
    """One query [D] over keys and values [L, D]; four positions at a time."""
    length, size = keys.shape[0], keys.shape[1]
    whole = length // 4 * 4
    for at in range(0, whole, 4):
        k0, k1, k2, k3 = keys[at], keys[at + 1], keys[at + 2], keys[at + 3]
        s0, s1, s2, s3 = ZERO, ZERO, ZERO, ZERO
        for j in range(size):
            q = query[j]
            s0 += q * k0[j]
            s1 += q * k1[j]
            s2 += q * k2[j]
            s3 += q * k3[j]
        scores[at], scores[at + 1], scores[at + 2], scores[at + 3] = s0, s1, s2, s3
    for at in range(whole, length):
        s0 = ZERO
        for j in range(size):
            s0 += query[j] * keys[at, j]
        scores[at] = s0
    most = LOWEST
    for at in range(length):
        scores[at] *= scaling
        most = max(most, scores[at])
    total = ZERO
    for at in range(length):
        scores[at] = exp(scores[at] - most)
        total += scores[at]
    size = values.shape[1]
    for j in range(size):
        y[j] = ZERO
    for at in range(0, whole, 4):
        v0, v1, v2, v3 = values[at], values[at + 1], values[at + 2], values[at + 3]
        p0, p1, p2, p3 = scores[at], scores[at + 1], scores[at + 2], scores[at + 3]
        for j in range(size):
            y[j] += p0 * v0[j] + p1 * v1[j] + p2 * v2[j] + p3 * v3[j]
    for at in range(whole, length):
        for j in range(size):
            y[j] += scores[at] * values[at, j]
    for j in range(size):
        y[j] /= total


@compiled
def attend_task(
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
        keys[slot, head, position] = qkv[row, heads + head]
        values[slot, head, position] = qkv[row, heads + kv_heads + head]
    end = position + 1
    start = max(0, end - window) if window else 0
    k, v = keys[slot, head, start:end], values[slot, head, start:end]
    scores = np.empty(end - start, dtype=np.float32)
    for query in range(low, high):
        attend_one(qkv[row, query], k, v, scaling, scores, y[row, query])
