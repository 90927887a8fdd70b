"""The two halves of a Llama-like decoder layer around its attention, for training on a CPU: each one step for autograd,
with its gradients written out.

As modules, a small model spends much of its time between the products: on casts, copies, sums, and the steps of
autograd itself. Here inputs are normed, cast and multiplied once for all products that share them, and gradients are
summed within the products. Products and the gate are computed in the type of autocast where there is one, all else in
float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from rlhf_core.models.fused import rotated
from rlhf_core.models.linear_maps import linear_maps
from rlhf_core.models.rms_norm import norm_gradients, norm_rows
from rlhf_core.models.written_gradients import as_written

Rotation = tuple[Tensor, Tensor]
"""Rotary tables [N, 1, D] for cos and sin (`fused.rotary_tables`)."""


def can_halve(layer: Any, x: Tensor) -> bool:
    """Whether the halves compute what the layer's modules do: linear maps with nothing put into their place, in
    float32 or under autocast, and without hooks."""
    attention, mlp = layer.self_attn, layer.mlp
    norms = layer.input_layernorm, layer.post_attention_layernorm
    maps: list[Any] = [
        getattr(owner, f"{name}_proj", None)
        for owner, names in ((attention, "qkvo"), (mlp, ("gate", "up", "down")))
        for name in names
    ]
    return (
        x.device.type == "cpu"
        and x.dtype == norms[0].weight.dtype == norms[1].weight.dtype == torch.float32
        and all(type(each) is nn.Linear for each in maps)
        and not any(map(_hooked, (mlp, *norms, *maps)))
        and (torch.is_autocast_enabled("cpu") or all(each.weight.dtype == torch.float32 for each in maps))
        and attention.config.hidden_act in ("silu", "swish")
    )


def _hooked(module: Any) -> bool:
    """Whether something else happens when the module is called than its class says: `with_adapter` does it so."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__)


def enter_attention(layer: Any, hidden: Tensor, rotation: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [N, D] -> queries [N, H, D_head], keys and values [N, H_kv, D_head] in float32, rotated."""
    attention = layer.self_attn
    maps = attention.q_proj, attention.k_proj, attention.v_proj
    norm = layer.input_layernorm
    query, key, value = _Enter.apply(
        hidden, norm.weight, norm.variance_epsilon, attention.head_dim, rotation, _dtype(), *_parameters(maps)
    )
    return query, key, value


def leave_attention(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """hidden [N, D] and what was attended to, [N, H * D_head] -> the layer's output [N, D]."""
    mlp, norm = layer.mlp, layer.post_attention_layernorm
    maps = layer.self_attn.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj
    output: Tensor = _Leave.apply(hidden, attended, norm.weight, norm.variance_epsilon, _dtype(), *_parameters(maps))
    return output


class _Enter(torch.autograd.Function):
    """Norm, queries, keys and values, rotation (Su et al. 2104.09864), whose gradient is the rotation backwards."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        epsilon: float,
        size: int,
        rotation: Rotation | None,
        dtype: torch.dtype,
        *parameters: Any,
    ) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", enabled=False):
            normed, inverse = norm_rows(hidden, weight, epsilon)
            x = normed.to(dtype)
            maps = linear_maps(parameters[::2], parameters[1::2], dtype)
            query, key, value = (each.float().view(len(x), -1, size) for each in maps(x))
            ctx.save_for_backward(hidden, weight, inverse, x, *maps.kept)
            ctx.maps, ctx.rotation = maps, rotation
            maps.let_go()
            if rotation is not None:
                query, key = (rotated(each, *rotation) for each in (query, key))
            return query, key, value

    @staticmethod
    @as_written
    def backward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, inverse, x, *ctx.maps.kept = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if ctx.rotation is not None:
            cos, sin = ctx.rotation
            sin = sin.roll(sin.shape[-1] // 2, -1)
            query, key = rotated(query, cos, sin), rotated(key, cos, sin)
        gradients = ctx.maps.as_given([each.reshape(len(x), -1) for each in (query, key, value)])
        learned = ctx.maps.to_parameters(gradients, x, wanted[6:])
        to_input = to_weight = None
        if any(wanted[:2]):
            to_x = ctx.maps.to_input(gradients).float()
            to_input, to_weight = norm_gradients(to_x, hidden, weight, inverse, wanted[:2])
        ctx.maps.let_go()
        return to_input, to_weight, None, None, None, None, *learned


class _Leave(torch.autograd.Function):
    """Output projection and its sum with the input, norm, SwiGLU (Shazeer 2002.05202) and its sum with what it read."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        attended: Tensor,
        weight: Tensor,
        epsilon: float,
        dtype: torch.dtype,
        *parameters: Any,
    ) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            weights, biases = parameters[::2], parameters[1::2]
            output, gate_up, down = (
                linear_maps(weights[part], biases[part], dtype) for part in (slice(0, 1), slice(1, 3), slice(3, 4))
            )
            taken = attended.to(dtype)
            middle = hidden + output(taken)[0]
            normed, inverse = norm_rows(middle, weight, epsilon)
            x = normed.to(dtype)
            gate, up = gate_up(x)
            opened = silu(gate)
            left = middle + down(opened * up)[0]
            kept = [each for maps in (output, gate_up, down) for each in maps.kept]
            ctx.save_for_backward(taken, middle, weight, inverse, x, gate, up, opened, *kept)
            ctx.maps = output, gate_up, down
            for maps in ctx.maps:
                maps.let_go()
            return left

    @staticmethod
    @as_written
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        taken, middle, weight, inverse, x, gate, up, opened, *kept = ctx.saved_tensors
        output, gate_up, down = ctx.maps
        output.kept, gate_up.kept, down.kept = kept[:1], kept[1:-1], kept[-1:]
        wanted = ctx.needs_input_grad
        given = down.as_given([gradient])
        of_down = down.to_parameters(given, opened * up, wanted[11:])
        to_gated = down.to_input(given)
        to_gate, to_up = both = gate_up.blank(to_gated)
        torch.mul(to_gated, opened, out=to_up)
        torch.ops.aten.silu_backward.grad_input(to_gated.mul_(up), gate, grad_input=to_gate)
        of_both = gate_up.to_parameters(both, x, wanted[7:11])
        to_x = gate_up.to_input(both).float()
        to_middle, to_weight = norm_gradients(to_x, middle, weight, inverse, (True, wanted[2]), more=gradient)
        assert to_middle is not None
        given = output.as_given([to_middle])
        of_output = output.to_parameters(given, taken, wanted[5:7])
        to_attended = output.to_input(given).float() if wanted[1] else None
        for maps in ctx.maps:
            maps.let_go()
        return to_middle, to_attended, to_weight, None, None, *of_output, *of_both, *of_down


def _parameters(maps: Sequence[Any]) -> list[Tensor | None]:
    return [each for one in maps for each in (one.weight, one.bias)]


def _dtype() -> torch.dtype:
    """What products are computed in."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
