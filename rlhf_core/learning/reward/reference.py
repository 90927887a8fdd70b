"""Answers of the supervised policy on which scores are normalised: the same ruler for every reward model after it."""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.models.heads import PromptResponse
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import Sampling

SLOTS = 32
"""Answers that are sampled at once."""


def sample_reference(
    policy: LoadedPolicy, prompts: Sequence[Sequence[int]], count: int, *, max_new_tokens: int, seed: int
) -> list[PromptResponse]:
    """`count` sampled answers at temperature 1 to distinct prompts in turn; the i-th has the seed `seed` + i.

    Prompts without room for an answer are left out; without any prompt there are no answers.
    """
    fitting = [each for each in dict.fromkeys(map(tuple, prompts)) if len(each) + max_new_tokens <= policy.max_context]
    if not fitting or not count:
        return []
    longest = max(map(len, fitting)) + max_new_tokens
    engine = Engine(policy, max_running=SLOTS, max_waiting=count, max_context=longest)
    asked = [fitting[at % len(fitting)] for at in range(count)]
    requests = [
        GenerationRequest(
            request_id=f"reference-{at}",
            prompt_token_ids=prompt,
            sampling=Sampling(temperature=1.0, max_tokens=max_new_tokens, seed=seed + at),
            decode_text=False,
        )
        for at, prompt in enumerate(asked)
    ]
    answers = engine.generate(requests)
    return [(prompt, tuple(one.token_ids)) for prompt, one in zip(asked, answers, strict=True) if one.token_ids]
