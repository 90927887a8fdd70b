"""The engine's probabilities against the model's own: the last word on whether a policy can be served.

Whatever a family does that the slots do not know of (a position bias, a state that passes from token to token, a
second attention) shows here as another probability of the same token.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import embedding, linear
from torch.overrides import TorchFunctionMode

from rlhf_core.engine.sequence import Sequence
from rlhf_core.errors import ModelError
from rlhf_core.models.load import LoadedPolicy

TOLERANCE: Final = {torch.float32: 0.005, torch.bfloat16: 0.25}
"""Nats per token, on average. Rounding alone gives about 1e-6 in float32 and up to 0.05 in bfloat16 on the models of
the tests; a wrong attention, whole nats.
"""
OUTPUTS_AT_ONCE: Final = 4096
"""Of a product whose weights are widened for it."""


def require_agreement(policy: LoadedPolicy, sequences: Rows[Sequence]) -> None:
    """Greedy answers of an engine, checked against one plain forward each. Raises ModelError with both numbers."""
    gaps = [
        abs(own - stored)
        for sequence in sequences
        for own, stored in zip(own_logprobs(policy, sequence), sequence.logprobs, strict=True)
    ]
    mean, allowed = sum(gaps) / len(gaps), TOLERANCE[policy.dtype]
    if not mean <= allowed:
        raise ModelError(
            f"{type(policy.model).__name__} gives other probabilities in the engine than by itself: "
            f"{mean:.3g} nats per token apart, where {allowed:.3g} is allowed; it cannot be served"
        )


class _ComputedIn(TorchFunctionMode):
    """Weights of another type become this one as they are used, one module's at a time."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(self, function: Any, _types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        if function is linear:
            return self._linear(*arguments, **(keywords or {}))
        result = function(*arguments, **(keywords or {}))
        return result.to(self._dtype) if function is embedding else result

    def _linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """A part of the outputs at a time, so that no vocabulary is widened as a whole."""
        x = x.to(self._dtype)
        y = torch.cat([x @ part.to(self._dtype).t() for part in weight.split(OUTPUTS_AT_ONCE)], dim=-1)
        return y if bias is None else y + bias


@torch.inference_mode()
def own_logprobs(policy: LoadedPolicy, sequence: Sequence) -> list[float]:
    """The logprob of each response token when the policy's model is called as usual, in the type that it is computed
    in, at temperature 1."""
    model: Any = policy.model
    prompt = sequence.request.prompt_token_ids
    token_ids = torch.tensor([[*prompt, *sequence.token_ids]], device=model.device)
    with _ComputedIn(policy.dtype) if policy.dtype != model.dtype else nullcontext():
        logits: Tensor = model(input_ids=token_ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    own: list[float] = logits.float().log_softmax(dim=-1).gather(1, token_ids[0, len(prompt) :, None])[:, 0].tolist()
    return own
