"""What a decode step does to a few rows, compiled for this machine's CPU: products, norms, rotations, attention, gates.

A step of a small model is hundreds of operations on little data, and calling them one by one costs more than they do.
These do as much as a step can do at once, in float32, without holding Python's lock: an engine that computes leaves the
interpreter to whoever serves. Compiled when first called and kept on disk (numba); results differ from torch's own by
rounding. Arrays are numpy's and contiguous: others give wrong results, and so does a place that is not there. Whoever
calls provides those that are written.

Letters as everywhere: N rows, K inputs, M outputs, H heads, H_kv key heads, D head size.
"""

from __future__ import annotations

from rlhf_core.models.kernels.attention import attend_alike, store
from rlhf_core.models.kernels.compiling import exp
from rlhf_core.models.kernels.draws import LEFT_OUT
from rlhf_core.models.kernels.parts import part_doer
from rlhf_core.models.kernels.rows import add_norm, norm_heads
from rlhf_core.models.kernels.shared import (
    AWAKE,
    add_low_rank,
    attend,
    attend_span,
    draw,
    gate,
    help_out,
    multiply,
    multiply_bfloat16,
    multiply_widened,
)
from rlhf_core.models.kernels.tiles import BFLOAT16, FLOAT32
from rlhf_core.models.kernels.words import DOER, HANDS, WORDS

__all__ = [
    "AWAKE",
    "BFLOAT16",
    "DOER",
    "FLOAT32",
    "HANDS",
    "LEFT_OUT",
    "WORDS",
    "add_low_rank",
    "add_norm",
    "attend",
    "attend_alike",
    "attend_span",
    "draw",
    "exp",
    "gate",
    "help_out",
    "multiply",
    "multiply_bfloat16",
    "multiply_widened",
    "norm_heads",
    "part_doer",
    "store",
]
