"""The forward of weights that still learn: what the engine samples rollouts from.

Computes what the trainer's own forward computes, LoRA terms and bfloat16 autocast included, so that the engine's
logprobs are the trainer's but for rounding. Where a copy of the weights is faster to sample from (joined terms,
bfloat16), it is taken by `refresh`, after the weights learned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rlhf_core.models.compiled import CompiledForward, is_compiled
from rlhf_core.models.forward import Forward, PlainForward
from rlhf_core.models.fused import FUSED, FusedForward
from rlhf_core.models.lora_layers import current_terms

if TYPE_CHECKING:
    from rlhf_core.models.attention import SlotAttention


class LiveForward:
    """A forward over `model`'s own weights. `lora`: they are frozen but for the terms of `add_lora`."""

    recordable = False
    """What it multiplies is made anew at each refresh."""

    def __init__(self, model: Any, *, max_context: int, lora: bool, compute: str = "float32") -> None:
        self._model = model
        self._lora = lora
        self._dtype = torch.bfloat16 if compute == "bfloat16" else None
        self._fused = self._fuse(max_context)
        self._now: Forward = PlainForward(model)
        self.refresh()

    def _fuse(self, max_context: int) -> FusedForward | CompiledForward | None:
        if is_compiled(self._model) and self._dtype is None:
            return CompiledForward(self._model, max_context=max_context, frozen=self._lora)
        if type(self._model).__name__ not in FUSED:
            return None
        return FusedForward(self._model, max_context=max_context, frozen=self._lora, compute=self._dtype)

    def refresh(self) -> None:
        """Sample from the weights as they are now."""
        if self._fused is None:
            return
        if not self._lora:
            self._fused.refresh()
        self._now = self._fused.adapted(current_terms(self._model, self._dtype)) if self._lora else self._fused

    def __call__(self, token_ids: Tensor, positions: Tensor, kept: Tensor | None, slots: SlotAttention) -> Tensor:
        """token_ids and positions [N] -> logits [K, V] of the rows `kept` [K], of all N for None."""
        if self._fused is not None or self._dtype is None:
            return self._now(token_ids, positions, kept, slots)
        with torch.autocast(token_ids.device.type, self._dtype):
            return self._now(token_ids, positions, kept, slots)
