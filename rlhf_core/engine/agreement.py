"""The engine's probabilities against the model's own: the last word on whether a policy can be served.

Whatever a family does that the slots do not know of (a position bias, a state that passes from token to token, a
second attention) shows here as another probability of the same token.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import Any, Final

import torch
from torch import Tensor

from rlhf_core.engine.sequence import Sequence
from rlhf_core.errors import ModelError
from rlhf_core.models.load import LoadedPolicy

TOLERANCE: Final = {torch.float32: 0.005, torch.bfloat16: 0.25}
"""Nats per token, on average. Rounding alone gives about 1e-6 in float32 and up to 0.05 in bfloat16 on the models of
the tests; a wrong attention, whole nats.
"""


def require_agreement(policy: LoadedPolicy, sequences: Rows[Sequence]) -> None:
    """Greedy answers of an engine, checked against one plain forward each. Raises ModelError with both numbers."""
    gaps = [
        abs(own - stored)
        for sequence in sequences
        for own, stored in zip(own_logprobs(policy.model, sequence), sequence.logprobs, strict=True)
    ]
    mean, allowed = sum(gaps) / len(gaps), TOLERANCE[policy.model.dtype]
    if not mean <= allowed:
        raise ModelError(
            f"{type(policy.model).__name__} gives other probabilities in the engine than by itself: "
            f"{mean:.3g} nats per token apart, where {allowed:.3g} is allowed; it cannot be served"
        )


@torch.inference_mode()
def own_logprobs(model: Any, sequence: Sequence) -> list[float]:
    """The logprob of each response token when `model` is called as usual, at temperature 1, in float32."""
    prompt = sequence.request.prompt_token_ids
    token_ids = torch.tensor([[*prompt, *sequence.token_ids]], device=model.device)
    logits: Tensor = model(input_ids=token_ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    own: list[float] = logits.float().log_softmax(dim=-1).gather(1, token_ids[0, len(prompt) :, None])[:, 0].tolist()
    return own
