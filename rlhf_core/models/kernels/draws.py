"""A token drawn from a row of logits."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from rlhf_core.models.kernels.compiling import LOWEST, ONE, ZERO, compiled, exp
from rlhf_core.models.kernels.sums import total as total_of

BLOCK: Final = 256
"""Tokens whose probabilities are summed up before one is looked for among them."""
LEFT_OUT: Final = -1.0
"""The temperature of a row of which nothing is drawn."""


@compiled
def _pass(shares: Any, sums: Any, target: float) -> int:
    """The first token at which the running sum of `shares` [V] exceeds the target; never one of no share at all."""
    block, before = 0, 0.0
    while block < sums.size - 1 and before + sums[block] <= target:
        before += sums[block]
        block += 1
    found = block * BLOCK
    for token in range(found, min(shares.size, (block + 1) * BLOCK)):
        if shares[token] > ZERO:
            found = token
            before += shares[token]
            if before > target:
                break
    return found


@compiled
def draw_row(logits: Any, temperature: Any, uniform: float) -> Any:
    if temperature < ZERO:
        return 0, ZERO
    size = logits.size
    inverse = ONE / temperature if temperature > ZERO else ONE
    best, most, wrong = 0, LOWEST, 0
    for token in range(size):
        most = max(most, logits[token])
        wrong += not logits[token] < -LOWEST
    if wrong or most == LOWEST:
        return -1, ZERO
    shares = np.empty(size, dtype=np.float32)
    sums = np.empty((size + BLOCK - 1) // BLOCK, dtype=np.float64)
    for token in range(size):
        shares[token] = exp((logits[token] - most) * inverse)
    total = 0.0
    for block in range(sums.size):
        part = shares[block * BLOCK : (block + 1) * BLOCK]
        sums[block] = total_of(part.ctypes.data, part.size)
        total += sums[block]
    if temperature <= ZERO:
        while logits[best] != most:
            best += 1
    else:
        best = _pass(shares, sums, uniform * total)
    return best, np.float32((logits[best] - most) * inverse - np.log(total))
