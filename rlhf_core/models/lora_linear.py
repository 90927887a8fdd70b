"""peft's LoRA layer over a linear map, computed in half as many passes over memory: the term is added in place.

y = x W^T + b + s (x A^T) B^T, and its gradients by the chain rule (Hu et al. 2106.09685, 4.1). Where anything but plain
LoRA in one precision is wanted, peft's own forward does it.
"""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor
from torch.nn.functional import linear

from rlhf_core.models.written_gradients import as_written


class LowRankLinear(Linear):
    """A peft layer whose class was replaced; see `lean`."""

    def forward(self, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
        """[..., in] -> [..., out]."""
        name = self.active_adapters[0] if len(self.active_adapters) == 1 else ""
        base = self.get_base_layer()
        if (
            arguments
            or named
            or self.disable_adapters
            or self.merged
            or name not in self.lora_A
            or name in self.lora_variant
            or base.weight.requires_grad
            or torch.is_autocast_enabled(x.device.type)
        ):
            plain: Tensor = super().forward(x, *arguments, **named)
            return plain
        down, up = self.lora_A[name].weight, self.lora_B[name].weight
        term: Tensor = _WithTerm.apply(x, base.weight, base.bias, down, up, self.scaling[name])
        return term


def lean(layer: Any) -> None:
    """Let a layer that peft made compute in fewer passes, where its base is a linear map without dropout before it."""
    plain = type(layer) is Linear and type(layer.get_base_layer()) is torch.nn.Linear
    if plain and all(isinstance(each, torch.nn.Identity) for each in layer.lora_dropout.values()):
        layer.__class__ = LowRankLinear


class _WithTerm(torch.autograd.Function):
    """The base's weight and bias are frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scaling: float
    ) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        low = rows @ down.t()
        ctx.save_for_backward(rows, weight, down, up, low)
        ctx.scaling, ctx.shape = scaling, x.shape
        return linear(rows, weight, bias).addmm_(low, up.t(), alpha=scaling).view(*x.shape[:-1], -1)

    @staticmethod
    @as_written
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        rows, weight, down, up, low = ctx.saved_tensors
        given = gradient.reshape(-1, gradient.shape[-1])
        back = (given @ up).mul_(ctx.scaling)
        to_input = None
        if ctx.needs_input_grad[0]:
            to_input = (given @ weight).addmm_(back, down).view(ctx.shape)
        return to_input, None, None, back.t() @ rows, (given.t() @ low).mul_(ctx.scaling), None
