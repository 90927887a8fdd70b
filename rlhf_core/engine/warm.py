"""Compiles the kernels before anybody waits for them: once for an installation, less than a minute.

A program that finds them on disk reads them in half a second; without this, the first server to start would compile
them while it starts.
"""

from __future__ import annotations

import numpy as np

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.models import kernels
from rlhf_core.models.kernels.crew import muster
from rlhf_core.models.load import load_policy, locate_model
from rlhf_core.records import Sampling

PROMPT_TOKENS = 100
"""Enough that a part of it is read in each of the ways there are."""


def main() -> None:
    policy = load_policy(locate_model("desk"), frozen=True)
    engine = Engine(policy, max_running=2, max_waiting=0, max_context=2 * PROMPT_TOKENS)
    prompt = tuple(range(10, 10 + PROMPT_TOKENS))
    engine.generate(GenerationRequest(f"warm-{each}", prompt[:each], Sampling(max_tokens=2)) for each in (5, 100))
    _what_the_desk_does_without()


def _what_the_desk_does_without() -> None:
    """Weights in bfloat16, adapters, and norms of single heads."""
    x, y = np.ones((1, 4), dtype=np.float32), np.empty((1, 4), dtype=np.float32)
    for multiply in (kernels.multiply_widened, kernels.multiply_bfloat16):
        multiply(x, np.zeros((4, 2), dtype=np.int32), y[0], y, 0, muster())
    kernels.add_low_rank(x, x, x, y, muster())
    kernels.norm_heads(x[None], 0, 1, x[0], np.float32(1e-6))


if __name__ == "__main__":
    main()
