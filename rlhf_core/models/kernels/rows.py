"""What is done to each row by itself: norms, and the gate of a feed-forward."""

from __future__ import annotations

from typing import Any

import numpy as np

from rlhf_core.models.kernels.compiling import ONE, compiled, exp
from rlhf_core.models.kernels.sums import dot


@compiled
def _norm_row(x: Any, weight: Any, epsilon: Any, y: Any) -> None:
    squares = dot(x.ctypes.data, x.ctypes.data, x.size)
    inverse = ONE / np.sqrt(squares / np.float32(x.size) + epsilon)
    for k in range(x.size):
        y[k] = x[k] * inverse * weight[k]


@compiled
def add_norm(x: Any, more: Any, weight: Any, epsilon: Any, y: Any) -> None:
    """x += more, and y the norm of that; all [N, K]."""
    for row in range(x.shape[0]):
        own, other = x[row], more[row]
        for k in range(own.size):
            own[k] += other[k]
        _norm_row(own, weight, epsilon, y[row])


@compiled
def norm_heads(qkv: Any, first: int, last: int, weight: Any, epsilon: Any) -> None:
    """The norm of each of the heads first..last-1 of qkv [N, H + 2 H_kv, D], in place."""
    for row in range(qkv.shape[0]):
        for head in range(first, last):
            _norm_row(qkv[row, head], weight, epsilon, qkv[row, head])


@compiled
def gate_rows(both: Any, y: Any, first: int, last: int) -> None:
    """The rows first..last-1 of what `gate` makes."""
    size = y.shape[1]
    for row in range(first, last):
        gate, up, out = both[row, :size], both[row, size:], y[row]
        for k in range(size):
            out[k] = gate[k] / (ONE + exp(-gate[k])) * up[k]
