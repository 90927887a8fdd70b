"""The forward pass of Llama-like decoders, written out for serving: one product for queries, keys and values, one for
gate and up, rotary tables made once, and none of the layers of Python that transformers needs to be general.

Computes what the transformers model computes, for the families in `FUSED`; every other family runs its own modules
(models/forward.py). Attention and its cache are the engine's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor
from torch.linalg import vector_norm
from torch.nn.functional import embedding, rms_norm

from rlhf_core.models.attention import SlotAttention
from rlhf_core.models.layers import Layer, layers_of
from rlhf_core.models.lora import Adapter
from rlhf_core.models.projection import CastPart, FrozenPart, LivePart, Projection

FUSED: Final = frozenset(
    {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "SmolLM3ForCausalLM"}
)
Part = Callable[[Sequence[torch.nn.Module]], FrozenPart | LivePart | CastPart]


class RMSNorm:
    """x / sqrt(mean(x^2) + eps) * weight, over the last dimension (Zhang and Sennrich 2019).

    Written as x / hypot(|x|, sqrt(D eps)) * sqrt(D) * weight: half the operations, which is half the time for the few
    rows of a decode step.
    """

    def __init__(self, module: Any) -> None:
        self._module = module
        self._size: int = module.weight.shape[-1]
        floor = math.sqrt(self._size * module.variance_epsilon)
        self._floor = torch.tensor(floor, dtype=torch.float32, device=module.weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """[..., D] -> [..., D]."""
        weight: Tensor = self._module.weight
        if x.dtype != torch.float32:
            if x.dtype == weight.dtype:
                return rms_norm(x, weight.shape, weight, self._module.variance_epsilon)
            x = x.float()
        length = vector_norm(x, dim=-1, keepdim=True).hypot_(self._floor)
        return (x / length.mul_(self._size**-0.5)).mul_(weight)


class FusedForward:
    """Logits of a step's tokens. `frozen` says that the weights will not change, so they may be joined, and packed
    too: `pack` takes that much memory again. With `compute` the projections are copies in that type, as of the last
    `refresh`, and the sums between them stay in the model's own: what autocast computes."""

    def __init__(
        self, model: Any, *, max_context: int, frozen: bool, pack: bool = False, compute: torch.dtype | None = None
    ) -> None:
        self.recordable = frozen
        self.by_kernel = False
        config = model.config
        attention = model.model.layers[0].self_attn
        self._heads: int = config.num_attention_heads
        self._kv_heads: int = config.num_key_value_heads
        self._size: int = attention.head_dim
        self._scaling: float = attention.scaling
        self._embedding: Tensor = model.model.embed_tokens.weight
        self._final_norm = RMSNorm(model.model.norm)
        part: Part = partial(FrozenPart, pack=pack) if frozen else LivePart
        if compute is not None:
            part = partial(CastPart, dtype=compute)
        project = partial(_projection, part)
        self._layers = layers_of(model, RMSNorm, project)
        self._head = project(model, "", ("lm_head",))
        self._cos, self._sin = rotary_tables(model.model, torch.arange(max_context, device=model.device))

    def adapted(self, adapter: Adapter) -> FusedForward:
        """The same weights with an adapter's terms beside them; shares every tensor."""
        twin = copy.copy(self)
        twin._head = self._head.adapted(adapter)
        twin._layers = [layer.adapted(adapter) for layer in self._layers]
        return twin

    def refresh(self) -> None:
        """Copy again what was copied from weights that have changed since."""
        for layer in self._layers:
            for projection in (layer.qkv, layer.output, layer.gate_up, layer.down):
                projection.refresh()
        self._head.refresh()

    def __call__(self, token_ids: Tensor, positions: Tensor, kept: Tensor | None, slots: SlotAttention) -> Tensor:
        """token_ids and positions [N] -> logits [K, V] of the rows `kept` [K], of all N for None."""
        hidden = embedding(token_ids, self._embedding)
        cos, sin = self._cos[positions], self._sin[positions]
        for index, layer in enumerate(self._layers):
            hidden = hidden + self._attend(index, layer, layer.attention_norm(hidden), cos, sin, slots)
            hidden = hidden + self._feed_forward(layer, layer.mlp_norm(hidden))
        if kept is not None:
            hidden = hidden[kept]
        return self._head(self._final_norm(hidden))

    def _attend(
        self, index: int, layer: Layer[RMSNorm, Projection], x: Tensor, cos: Tensor, sin: Tensor, slots: SlotAttention
    ) -> Tensor:
        rows, heads, kv_heads = x.shape[0], self._heads, self._kv_heads
        qkv = layer.qkv(x).view(rows, heads + 2 * kv_heads, self._size)
        heads_in, value = qkv[:, : heads + kv_heads], qkv[:, heads + kv_heads :]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = layer.query_norm(heads_in[:, :heads]), layer.key_norm(heads_in[:, heads:])
            heads_in = torch.cat([query, key], dim=1)
        if layer.rotary:
            heads_in = rotated(heads_in, cos, sin)
        turned = heads_in.to(value.dtype).transpose(0, 1).unsqueeze(0)
        query, key = turned[:, :heads], turned[:, heads:]
        attended = slots.attend(
            index, query, key, value.transpose(0, 1).unsqueeze(0), self._scaling, window=layer.window
        )
        return layer.output(attended.reshape(rows, heads * self._size))

    def _feed_forward(self, layer: Layer[RMSNorm, Projection], x: Tensor) -> Tensor:
        gate, up = layer.gate_up(x).chunk(2, dim=-1)
        return layer.down(layer.activation(gate) * up)


def _projection(part: Part, parent: Any, path: str, names: Sequence[str]) -> Projection:
    modules = [getattr(parent, name) for name in names]
    return Projection(
        part(modules), [(path + name, module.out_features) for name, module in zip(names, modules, strict=True)]
    )


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin (Su et al. 2104.09864), the sign moved into `sin`. x [N, H, D], tables [N, 1, D]."""
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


def rotary_tables(trunk: Any, positions: Tensor, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, D] for positions [N], in the embedding's type if no other is given; sin negated in the first
    half (see `rotated`)."""
    with torch.no_grad():
        like = trunk.embed_tokens.weight[:1]
        cos, sin = trunk.rotary_emb(like if dtype is None else like.to(dtype), position_ids=positions[None])
    sin = sin[0].clone()
    sin[:, : sin.shape[-1] // 2].neg_()
    return cos[0].unsqueeze(1), sin.unsqueeze(1)
