"""Compiles the kernels before anybody waits for them: once for an installation, some twenty seconds.

A program that finds them on disk reads them in half a second; without this, the first server to start would compile
them while it starts.
"""

from __future__ import annotations

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.models.load import load_policy, locate_model
from rlhf_core.records import Sampling

PROMPT_TOKENS = 100
"""Enough that a part of it is read in each of the ways there are."""


def main() -> None:
    policy = load_policy(locate_model("desk"), frozen=True)
    engine = Engine(policy, max_running=2, max_waiting=0, max_context=2 * PROMPT_TOKENS)
    prompt = tuple(range(10, 10 + PROMPT_TOKENS))
    engine.generate(GenerationRequest(f"warm-{each}", prompt[:each], Sampling(max_tokens=2)) for each in (5, 100))


if __name__ == "__main__":
    main()
