"""How a policy computes a step: fused where the family is known, by its own transformers modules otherwise."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from rlhf_core.models.attention import SlotAttention
from rlhf_core.models.fused import FUSED, FusedForward
from rlhf_core.models.lora import Adapter
from rlhf_core.models.placement import computed_by_kernels


class Forward(Protocol):
    """The model as the engine sees it."""

    recordable: bool
    """Whether a CUDA graph can hold a call of it: it never asks the device for a value, and its weights stay where they
    are."""

    by_kernel: bool
    """Whether a kernel draws from its logits, which are a CPU's and float32 then."""

    def __call__(self, token_ids: Tensor, positions: Tensor, kept: Tensor | None, slots: SlotAttention) -> Tensor:
        """token_ids and positions [N] -> logits [K, V] of the rows `kept` [K], of all N for None."""
        ...


class PlainForward:
    """transformers' own modules, all tokens in one row of the batch."""

    recordable = False
    """Some families look at positions or at routing on the way."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.by_kernel = drawn_by_kernel(model)
        # transformers hands a mask of four dimensions through as it is, and so builds none.
        self._no_mask = torch.zeros(1, 1, 1, 1, device=model.device)

    def __call__(self, token_ids: Tensor, positions: Tensor, kept: Tensor | None, slots: SlotAttention) -> Tensor:
        output = self._model(
            input_ids=token_ids[None],
            position_ids=positions[None],
            attention_mask=self._no_mask,
            use_cache=False,
            logits_to_keep=0 if kept is None else kept,
            slots=slots,
        )
        logits: Tensor = output.logits[0]
        return logits


class WrittenForward(Forward, Protocol):
    """One that is written out for a family of models."""

    def adapted(self, adapter: Adapter) -> WrittenForward:
        """The same weights with an adapter's terms beside them."""
        ...

    def refresh(self) -> None:
        """Copy again what was copied from weights that have changed since."""
        ...


def write_out(
    model: Any,
    *,
    max_context: int,
    frozen: bool,
    pack: bool = False,
    compute: torch.dtype | None = None,
    kernels: bool = True,
) -> WrittenForward | None:
    """The forward that is written out for the model's family, None where there is none. With `compute` its projections
    are computed in that type, as autocast would; without `kernels` a CPU does without them."""
    compute = compute or model.dtype
    if type(model).__name__ not in FUSED:
        return None
    if kernels and _has_kernels(model, compute, frozen=frozen):
        # Here, because a process that does without kernels does without their compiler too.
        from rlhf_core.models.compiled import CompiledForward

        return CompiledForward(model, max_context=max_context, frozen=frozen, compute=compute)
    other = None if compute == model.dtype else compute
    return FusedForward(model, max_context=max_context, frozen=frozen, pack=pack, compute=other)


def _has_kernels(model: Any, dtype: torch.dtype, *, frozen: bool) -> bool:
    """Whether kernels (models/kernels/) multiply the model's weights in this type: those of float32 where they lie, in
    which they may learn; those of bfloat16, of which they copy what is no product's, only frozen."""
    held = dtype == torch.float32 if model.dtype == torch.float32 else frozen
    return held and computed_by_kernels(type(model).__name__, dtype, model.device)


def drawn_by_kernel(model: Any) -> bool:
    """Whether a kernel can draw from what the model's own modules give."""
    return bool(model.device.type == "cpu" and model.dtype == torch.float32)


def make_forward(
    model: Any, *, max_context: int, frozen: bool, dtype: torch.dtype | None = None, pack: bool = False
) -> Forward:
    """`frozen`: the weights will not change any more. `dtype`: what to compute in, the weights' own if not given.
    `pack`: spend their memory again for speed, where it pays."""
    written = write_out(model, max_context=max_context, frozen=frozen, pack=pack, compute=dtype)
    return PlainForward(model) if written is None else written


def adapt_forward(forward: Forward, adapted_model: Any, adapter: Adapter) -> Forward:
    """The forward of frozen weights with an adapter beside them; `adapted_model` is the model with its terms."""
    if isinstance(forward, PlainForward):
        return PlainForward(adapted_model)
    return cast(WrittenForward, forward).adapted(adapter)
