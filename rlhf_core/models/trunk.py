"""The forward pass of Llama-like trunks, written out for training: norms and rotations in fewer passes over memory, and
the last layer's feed-forward only where its output is read.

Computes what the transformers model computes, for the families in `WRITTEN`: on a CPU each half of a layer at once
(layer_halves.py), else, and where something was put into a module's place (LoRA say), by the model's own modules.
Attention is given. What serving runs instead is in fused.py.
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor

from rlhf_core.models.attention import SlotAttention, refuse_dropout
from rlhf_core.models.fused import FUSED, rotary_tables, rotated
from rlhf_core.models.layer_halves import can_halve, enter_attention, leave_attention
from rlhf_core.models.layers import attention_window
from rlhf_core.models.rms_norm import norm

WRITTEN: Final = frozenset(name.replace("ForCausalLM", "Model") for name in FUSED)


def run_trunk(
    trunk: Any, token_ids: Tensor, positions: Tensor, slots: SlotAttention, wanted: Tensor | None = None
) -> Tensor:
    """token_ids and positions [N] -> last hidden states [K, D] of the rows `wanted` [K], of all N for None."""
    hidden = trunk.embed_tokens(token_ids)
    cos, sin = rotary_tables(trunk, positions)
    last = len(trunk.layers) - 1
    for index, layer in enumerate(trunk.layers):
        halved = can_halve(layer, hidden)
        attended = _attend(index, layer.self_attn, *_enter(layer, hidden, cos, sin, halved=halved), slots)
        if index == last and wanted is not None:
            attended, hidden = attended.index_select(0, wanted), hidden.index_select(0, wanted)
        hidden = (leave_attention if halved else _leave)(layer, hidden, attended)
    return norm(trunk.norm, hidden)


def _attend(index: int, attention: Any, query: Tensor, key: Tensor, value: Tensor, slots: SlotAttention) -> Tensor:
    """query [N, H, D], key and value [N, H_kv, D] -> [N, H * D], before the output projection."""
    refuse_dropout(attention, attention.attention_dropout if attention.training else 0.0)
    query, key, value = (each.transpose(0, 1)[None] for each in (query, key, value))
    attended = slots.attend(index, query, key, value, attention.scaling, window=attention_window(attention))
    return attended.reshape(attended.shape[1], -1)


def _enter(layer: Any, hidden: Tensor, cos: Tensor, sin: Tensor, *, halved: bool) -> tuple[Tensor, Tensor, Tensor]:
    """hidden [N, D] -> queries [N, H, D_head], keys and values [N, H_kv, D_head]."""
    attention = layer.self_attn
    normed, rotates = hasattr(attention, "q_norm"), getattr(attention, "use_rope", True)
    if halved and rotates and not normed:
        return enter_attention(layer, hidden, (cos, sin))
    query, key, value = enter_attention(layer, hidden, None) if halved else _projected(layer, hidden)
    if normed:
        query, key = norm(attention.q_norm, query), norm(attention.k_norm, key)
    if rotates:
        query, key = rotated(query, cos, sin), rotated(key, cos, sin)
    return query, key, value


def _projected(layer: Any, hidden: Tensor) -> list[Tensor]:
    """Queries, keys and values by the layer's own modules, as they leave these."""
    attention, x = layer.self_attn, norm(layer.input_layernorm, hidden)
    maps = attention.q_proj, attention.k_proj, attention.v_proj
    return [each(x).view(x.shape[0], -1, attention.head_dim) for each in maps]


def _leave(layer: Any, hidden: Tensor, attended: Tensor) -> Tensor:
    """hidden [N, D] and what was attended to -> the layer's output [N, D]."""
    hidden = hidden + layer.self_attn.o_proj(attended)
    return hidden + layer.mlp(norm(layer.post_attention_layernorm, hidden))
