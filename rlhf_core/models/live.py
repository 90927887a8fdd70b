"""The forward of weights that still learn: what the engine samples rollouts from.

Computes what the trainer's own forward computes, LoRA terms and bfloat16 autocast included, so that the engine's
logprobs are the trainer's but for rounding. Where a copy of the weights is faster to sample from (joined terms,
bfloat16), it is taken by `refresh`, after the weights learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor

from rlhf_core.models.forward import Forward, PlainForward, drawn_by_kernel, write_out
from rlhf_core.models.lora_layers import current_terms

if TYPE_CHECKING:
    from rlhf_core.models.attention import SlotAttention

WORTH_A_COMPILER: Final = 200 << 20
"""Bytes of weights from which sampling is done by kernels. Their compiler stays in memory, 100 MB of it, beside which a
small model's training is small; and the less of it is sampling."""


class LiveForward:
    """A forward over `model`'s own weights. `lora`: they are frozen but for the terms of `add_lora`."""

    recordable = False
    """What it multiplies is made anew at each refresh."""

    def __init__(self, model: Any, *, max_context: int, lora: bool, compute: str = "float32") -> None:
        self._model = model
        self._lora = lora
        self._dtype = torch.bfloat16 if compute == "bfloat16" else None
        size = sum(parameter.nbytes for parameter in model.parameters())
        self.by_kernel = self._dtype is None and drawn_by_kernel(model) and size >= WORTH_A_COMPILER
        self._written = write_out(
            model, max_context=max_context, frozen=lora, compute=self._dtype, kernels=self.by_kernel
        )
        self._now: Forward = PlainForward(model)
        self.refresh()

    def refresh(self) -> None:
        """Sample from the weights as they are now."""
        if self._written is None:
            return
        if not self._lora:
            self._written.refresh()
        self._now = self._written.adapted(current_terms(self._model, self._dtype)) if self._lora else self._written

    def __call__(self, token_ids: Tensor, positions: Tensor, kept: Tensor | None, slots: SlotAttention) -> Tensor:
        """token_ids and positions [N] -> logits [K, V] of the rows `kept` [K], of all N for None."""
        if self._written is not None or self._dtype is None:
            return self._now(token_ids, positions, kept, slots)
        with torch.autocast(token_ids.device.type, self._dtype):
            return self._now(token_ids, positions, kept, slots)
