"""The forward pass of Llama-like decoders on a CPU in float32, from the kernels beside it: what serving runs there.

Computes what `fused.py` computes on other devices and in other types, an operation a kernel instead of a dozen tensors.
Attention is still given: slots that take queries, keys and values as they leave their product (`JoinedAttention`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from rlhf_core.models import kernels
from rlhf_core.models.attention import JoinedAttention, Rotation, SlotAttention
from rlhf_core.models.fused import FUSED, GATE_UP, QKV, attention_window, rotary_tables
from rlhf_core.models.kernels.crew import Words, muster
from rlhf_core.models.lora import Adapter
from rlhf_core.models.projection import LowRank, join

Array = NDArray[np.float32]

_NONE: Final[Array] = np.zeros(0, dtype=np.float32)


def is_compiled(model: Any) -> bool:
    """Whether this is how `model` is served."""
    return type(model).__name__ in FUSED and model.device.type == "cpu" and model.dtype == torch.float32


@dataclass(frozen=True, eq=False)
class Product:
    """One product for modules that share their input, and an adapter's term where there is one."""

    weights: Sequence[Array]
    """[M, K] each: one for all modules where they are joined. They lie where the modules' own do."""
    biases: Sequence[Array]
    """[M], or nothing, for each weight."""
    modules: Sequence[tuple[str, int]]
    """(name, out features) of each module, in the order of the output."""
    term: LowRank | None = None

    @classmethod
    def of(cls, parent: Any, path: str, names: Sequence[str], *, frozen: bool) -> Product:
        """Of the modules of `parent` with these names. Frozen ones are joined: theirs become views of one weight."""
        parts = [getattr(parent, name) for name in names]
        modules = [(path + name, part.out_features) for name, part in zip(names, parts, strict=True)]
        biases = [_NONE if part.bias is None else part.bias.detach().numpy() for part in parts]
        if not frozen or len(parts) == 1:
            return cls([part.weight.detach().numpy() for part in parts], biases, modules)
        # Of joined projections all have a bias or none has: that is how every family builds them.
        return cls([join(parts).numpy()], [np.concatenate(biases)], modules)

    def __call__(self, x: Array, crew: Words) -> Array:
        """[N, K] -> [N, sum of M]."""
        y = np.empty((x.shape[0], self.outputs), dtype=np.float32)
        column = 0
        for weight, bias in zip(self.weights, self.biases, strict=True):
            kernels.multiply(x, weight, bias, y, column, crew)
            column += weight.shape[0]
        if self.term is not None:
            torch.from_numpy(y).addmm_(torch.from_numpy(x) @ self.term.down, self.term.up)
        return y

    @property
    def outputs(self) -> int:
        return sum(weight.shape[0] for weight in self.weights)

    def adapted(self, adapter: Adapter) -> Product:
        """The same weights beside an adapter's term."""
        return replace(self, term=adapter.joined(self.modules))


class Norm:
    """A module's RMSNorm over the last dimension."""

    def __init__(self, module: Any) -> None:
        self.weight: Array = module.weight.detach().numpy()
        self.epsilon = np.float32(module.variance_epsilon)

    def __call__(self, x: Array) -> Array:
        """[N, K] -> [N, K]."""
        y = np.empty_like(x)
        kernels.norm(x, self.weight, self.epsilon, y)
        return y

    def of_sum(self, x: Array, more: Array) -> Array:
        """The norm of x + more, which `x` becomes."""
        y = np.empty_like(x)
        kernels.add_norm(x, more, self.weight, self.epsilon, y)
        return y

    def of_heads(self, qkv: Array, first: int, last: int) -> None:
        """In place, of each of these heads of [N, heads, D]."""
        kernels.norm_heads(qkv, first, last, self.weight, self.epsilon)


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer's parts, in the order of use."""

    attention_norm: Norm
    qkv: Product
    query_norm: Norm | None
    key_norm: Norm | None
    rotary: bool
    window: int | None
    output: Product
    mlp_norm: Norm
    gate_up: Product
    activation: Any
    """None for SiLU, whose gate is one kernel."""
    down: Product

    def adapted(self, adapter: Adapter) -> Layer:
        parts = {name: getattr(self, name).adapted(adapter) for name in ("qkv", "output", "gate_up", "down")}
        return replace(self, **parts)


class CompiledForward:
    """Logits of a step's tokens. `frozen` says that the weights will not change, so they may be joined; others may
    learn where they lie, and are followed: not to another place, to which `parameter.data = ...` would move them."""

    recordable = False

    def __init__(self, model: Any, *, max_context: int, frozen: bool) -> None:
        config = model.config
        attention = model.model.layers[0].self_attn
        self._heads: int = config.num_attention_heads
        self._all_heads = self._heads + 2 * int(config.num_key_value_heads)
        self._size: int = attention.head_dim
        self._scaling = np.float32(attention.scaling)
        self._embedding: Tensor = model.model.embed_tokens.weight.detach()
        self._final_norm = Norm(model.model.norm)
        self._layers = [
            _layer(block, f"model.layers.{index}.", frozen=frozen) for index, block in enumerate(model.model.layers)
        ]
        self._head = Product.of(model, "", ("lm_head",), frozen=frozen)
        cos, sin = rotary_tables(model.model, torch.arange(max_context))
        self._cos, self._sin = cos[:, 0].contiguous().numpy(), sin[:, 0].contiguous().numpy()

    def adapted(self, adapter: Adapter) -> CompiledForward:
        """The same weights with an adapter's terms beside them; shares every tensor."""
        twin = copy.copy(self)
        twin._head = self._head.adapted(adapter)
        twin._layers = [layer.adapted(adapter) for layer in self._layers]
        return twin

    def refresh(self) -> None:
        """Nothing is copied: what learns is followed."""

    def __call__(self, token_ids: Tensor, positions: Tensor, kept: Tensor | None, slots: SlotAttention) -> Tensor:
        """token_ids and positions [N] -> logits [K, V] of the rows `kept` [K], of all N for None."""
        joined = cast(JoinedAttention, slots)
        assert int(positions.max()) < len(self._cos), "a token beyond the context"
        crew = muster()
        rotation = Rotation(self._cos, self._sin)
        hidden: Array = embedding(token_ids, self._embedding).numpy()
        more: Array | None = None
        for index, layer in enumerate(self._layers):
            x = layer.attention_norm(hidden) if more is None else layer.attention_norm.of_sum(hidden, more)
            attended = self._attend(index, layer, layer.qkv(x, crew), rotation, joined, crew)
            x = layer.mlp_norm.of_sum(hidden, layer.output(attended, crew))
            more = layer.down(_gated(layer, layer.gate_up(x, crew)), crew)
        if kept is not None:
            hidden, more = hidden[kept.numpy()], None if more is None else more[kept.numpy()]
        x = self._final_norm(hidden) if more is None else self._final_norm.of_sum(hidden, more)
        return torch.from_numpy(self._head(x, crew))

    def _attend(
        self, index: int, layer: Layer, qkv: Array, rotation: Rotation, slots: JoinedAttention, crew: Words
    ) -> Array:
        """[N, (H + 2 H_kv) D] -> [N, H D]."""
        rows, heads = qkv.shape[0], self._heads
        qkv = qkv.reshape(rows, self._all_heads, self._size)
        if layer.query_norm is not None and layer.key_norm is not None:
            layer.query_norm.of_heads(qkv, 0, heads)
            layer.key_norm.of_heads(qkv, heads, (self._all_heads + heads) // 2)
        attended = slots.attend_joined(
            index,
            qkv,
            heads,
            self._scaling,
            rotation=rotation if layer.rotary else None,
            window=layer.window,
            crew=crew,
        )
        return attended.reshape(rows, heads * self._size)


def _gated(layer: Layer, both: Array) -> Array:
    """[N, 2 M] -> [N, M]."""
    size = both.shape[1] // 2
    if layer.activation is not None:
        gated: Array = (layer.activation(torch.from_numpy(both[:, :size])) * torch.from_numpy(both[:, size:])).numpy()
        return gated
    y = np.empty((both.shape[0], size), dtype=np.float32)
    kernels.gate(both, y)
    return y


def _layer(block: Any, path: str, *, frozen: bool) -> Layer:
    attention, mlp = block.self_attn, block.mlp
    silu = block.mlp.config.hidden_act in ("silu", "swish")
    return Layer(
        attention_norm=Norm(block.input_layernorm),
        qkv=Product.of(attention, f"{path}self_attn.", QKV, frozen=frozen),
        query_norm=Norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=Norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
        rotary=bool(getattr(attention, "use_rope", True)),
        window=attention_window(attention),
        output=Product.of(attention, f"{path}self_attn.", ("o_proj",), frozen=frozen),
        mlp_norm=Norm(block.post_attention_layernorm),
        gate_up=Product.of(mlp, f"{path}mlp.", GATE_UP, frozen=frozen),
        activation=None if silu else mlp.act_fn,
        down=Product.of(mlp, f"{path}mlp.", ("down_proj",), frozen=frozen),
    )
