"""RMSNorm for training, in fewer passes over memory than its module takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rlhf_core.models.written_gradients import as_written


def norm(module: Any, x: Tensor) -> Tensor:
    """What the module makes of x [..., D]."""
    if x.dtype == module.weight.dtype == torch.float32:
        normed: Tensor = _RMSNorm.apply(x, module.weight, module.variance_epsilon)
    else:
        normed = module(x)
    return normed


def norm_rows(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x / r * weight and 1 / r over the last dimension, r = sqrt(mean(x^2) + epsilon) (Zhang and Sennrich 2019)."""
    inverse = vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
    return (x * inverse).mul_(weight), inverse


def norm_gradients(
    gradient: Tensor, x: Tensor, weight: Tensor, inverse: Tensor, wanted: Sequence[bool], more: Tensor | None = None
) -> tuple[Tensor | None, Tensor | None]:
    """Of `norm_rows` for x and for the weight, where wanted; `more` is added to the first.

    With g the gradient of y: dx = (g w - x (g x) . w / (D r^2)) / r and dw = the sum over rows of g x / r.
    """
    both = (gradient * x).reshape(-1, x.shape[-1])
    to_input = to_weight = None
    if wanted[1]:
        to_weight = inverse.view(1, -1).mm(both)[0]
    if wanted[0]:
        share = both.mv(weight).view(inverse.shape).mul_(inverse).mul_(inverse).mul_(inverse).div_(-x.shape[-1])
        scaled = gradient * weight
        to_input = scaled.mul_(inverse) if more is None else torch.addcmul(more, scaled, inverse)
        to_input.addcmul_(x, share)
    return to_input, to_weight


class _RMSNorm(torch.autograd.Function):
    """`norm_rows` as a step of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        normed, inverse = norm_rows(x, weight, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return normed

    @staticmethod
    @as_written
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        return *norm_gradients(gradient, x, weight, inverse, ctx.needs_input_grad), None
