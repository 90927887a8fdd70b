"""The forward pass of Llama-like trunks, written out for training: norms and rotations in fewer passes over memory, and
the last layer's feed-forward only where its output is read.

Computes what the transformers model computes, from its own modules (so whatever was put into their place, LoRA say, is
called), for the families in `WRITTEN`. Attention is given. What serving runs instead is in fused.py.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.linalg import vector_norm

from rlhf_core.models.attention import SlotAttention, refuse_dropout
from rlhf_core.models.fused import FUSED, rotary_tables, rotated
from rlhf_core.models.layers import attention_window

WRITTEN: Final = frozenset(name.replace("ForCausalLM", "Model") for name in FUSED)


def run_trunk(
    trunk: Any, token_ids: Tensor, positions: Tensor, slots: SlotAttention, wanted: Tensor | None = None
) -> Tensor:
    """token_ids and positions [N] -> last hidden states [K, D] of the rows `wanted` [K], of all N for None."""
    hidden = trunk.embed_tokens(token_ids)
    cos, sin = rotary_tables(trunk, positions)
    last = len(trunk.layers) - 1
    for index, layer in enumerate(trunk.layers):
        attended = _attend(index, layer.self_attn, _norm(layer.input_layernorm, hidden), cos, sin, slots)
        if index == last and wanted is not None:
            attended, hidden = attended.index_select(0, wanted), hidden.index_select(0, wanted)
        hidden = hidden + layer.self_attn.o_proj(attended)
        hidden = hidden + layer.mlp(_norm(layer.post_attention_layernorm, hidden))
    return _norm(trunk.norm, hidden)


def _attend(index: int, attention: Any, x: Tensor, cos: Tensor, sin: Tensor, slots: SlotAttention) -> Tensor:
    """x [N, D] -> [N, H * D_value], before the output projection."""
    refuse_dropout(attention, attention.attention_dropout if attention.training else 0.0)
    query, key, value = (
        projection(x).view(x.shape[0], -1, attention.head_dim)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    if hasattr(attention, "q_norm"):
        query, key = _norm(attention.q_norm, query), _norm(attention.k_norm, key)
    if getattr(attention, "use_rope", True):
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
    attended = slots.attend(index, query, key, value, attention.scaling, window=attention_window(attention))
    return attended.reshape(x.shape[0], -1)


def _norm(module: Any, x: Tensor) -> Tensor:
    if x.dtype == module.weight.dtype == torch.float32:
        normed: Tensor = _RMSNorm.apply(x, module.weight, module.variance_epsilon)
    else:
        normed = module(x)
    return normed


class _RMSNorm(torch.autograd.Function):
    """y = x / r * w with r = sqrt(mean(x^2) + eps) over the last dimension (Zhang and Sennrich 2019).

    With g the gradient of y: dx = (g w - x (g x) . w / (D r^2)) / r and dw = the sum over rows of g x / r.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        inverse = vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, inverse = ctx.saved_tensors
        both = (gradient * x).reshape(-1, x.shape[-1])
        to_weight = to_input = None
        if ctx.needs_input_grad[1]:
            to_weight = inverse.view(1, -1).mm(both)[0]
        if ctx.needs_input_grad[0]:
            share = both.mv(weight).view(inverse.shape).mul_(inverse).mul_(inverse).div_(-x.shape[-1])
            to_input = (gradient * weight).addcmul_(x, share).mul_(inverse)
        return to_input, to_weight, None
