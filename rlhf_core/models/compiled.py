"""The forward pass of Llama-like decoders on a CPU, from the kernels beside it: what serving runs there.

Computes what `fused.py` computes on other devices, an operation a kernel instead of a dozen tensors. Products may be
those of bfloat16 numbers; sums and all else are in float32.
Attention is still given: slots that take queries, keys and values as they leave their product (`JoinedAttention`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import embedding

from rlhf_core.models import kernels
from rlhf_core.models.attention import JoinedAttention, Rotation, SlotAttention
from rlhf_core.models.fused import rotary_tables
from rlhf_core.models.kernels.crew import Words, muster
from rlhf_core.models.layers import Layer, layers_of
from rlhf_core.models.lora import Adapter
from rlhf_core.models.projection import LowRank, join

Array = NDArray[np.float32]
Weight = NDArray[np.float32] | NDArray[np.int32]
"""[M, K], or [M, K / 2] of int32: the bits of two bfloat16 numbers each."""

_NONE: Final[Array] = np.zeros(0, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Term:
    """An adapter's term as the kernel has it."""

    down: Array
    """[R, K]"""
    up: Array
    """[R, M]"""

    @classmethod
    def of(cls, term: LowRank) -> Term:
        return cls(*(part.detach().float().contiguous().numpy() for part in (term.down.t(), term.up)))


@dataclass(frozen=True, eq=False)
class Product:
    """One product for modules that share their input, and an adapter's term where there is one."""

    weights: Sequence[Weight]
    """One for all modules where they are joined. They lie where the modules' own do."""
    biases: Sequence[Array]
    """[M], or nothing, for each weight."""
    modules: Sequence[tuple[str, int]]
    """(name, out features) of each module, in the order of the output."""
    rounds: bool = False
    """Inputs are rounded to bfloat16 where weights are held in it, instead of these being widened."""
    term: Term | None = None

    @classmethod
    def of(cls, parent: Any, path: str, names: Sequence[str], *, frozen: bool, rounds: bool) -> Product:
        """Of the modules of `parent` with these names. Frozen ones are joined: theirs become views of one weight."""
        parts = [getattr(parent, name) for name in names]
        modules = [(path + name, part.out_features) for name, part in zip(names, parts, strict=True)]
        biases = [_NONE if part.bias is None else part.bias.detach().float().numpy() for part in parts]
        if not frozen or len(parts) == 1:
            return cls([_weight(part.weight) for part in parts], biases, modules, rounds)
        # Of joined projections all have a bias or none has: that is how every family builds them.
        return cls([_weight(join(parts))], [np.concatenate(biases)], modules, rounds)

    def __call__(self, x: Array, crew: Words) -> Array:
        """[N, K] -> [N, sum of M]."""
        y = np.empty((x.shape[0], self.outputs), dtype=np.float32)
        column = 0
        of_words = kernels.multiply_bfloat16 if self.rounds else kernels.multiply_widened
        for weight, bias in zip(self.weights, self.biases, strict=True):
            multiply = kernels.multiply if weight.dtype == np.float32 else of_words
            multiply(x, weight, bias, y, column, crew)
            column += weight.shape[0]
        if self.term is not None:
            kernels.add_low_rank(x, self.term.down, self.term.up, y, crew)
        return y

    @property
    def outputs(self) -> int:
        return sum(weight.shape[0] for weight in self.weights)

    def adapted(self, adapter: Adapter) -> Product:
        """The same weights beside an adapter's term."""
        term = adapter.joined(self.modules)
        return replace(self, term=None if term is None else Term.of(term))


def _weight(parameter: Tensor) -> Weight:
    """What a kernel multiplies, where it lies. Of bfloat16 that cannot be read two at a time, a copy: in float32 where
    inputs are odd in number, else at a place where it can."""
    held = parameter.detach()
    if held.dtype != torch.bfloat16 or held.shape[1] % 2:
        return cast(Weight, held.float().numpy())
    words = held.clone() if held.storage_offset() % 2 else held
    return cast(Weight, words.view(torch.int32).numpy())


class Norm:
    """A module's RMSNorm over the last dimension."""

    def __init__(self, module: Any) -> None:
        self.weight: Array = module.weight.detach().float().numpy()
        self.epsilon = np.float32(module.variance_epsilon)

    def of_sum(self, x: Array, more: Array) -> Array:
        """The norm of x + more [N, K], which `x` becomes."""
        y = np.empty_like(x)
        kernels.add_norm(x, more, self.weight, self.epsilon, y)
        return y

    def of_heads(self, qkv: Array, first: int, last: int) -> None:
        """In place, of each of these heads of [N, heads, D]."""
        kernels.norm_heads(qkv, first, last, self.weight, self.epsilon)


class CompiledForward:
    """Logits of a step's tokens. `frozen` says that the weights will not change, so they may be joined; others may
    learn where they lie, and are followed: not to another place, to which `parameter.data = ...` would move them.
    Weights in bfloat16 are multiplied as the float32 numbers that they are too, unless that is what to `compute` in."""

    recordable = False
    by_kernel = True

    def __init__(self, model: Any, *, max_context: int, frozen: bool, compute: torch.dtype = torch.float32) -> None:
        config = model.config
        attention = model.model.layers[0].self_attn
        self._kept = compute
        self._heads: int = config.num_attention_heads
        self._all_heads = self._heads + 2 * int(config.num_key_value_heads)
        self._size: int = attention.head_dim
        self._scaling = np.float32(attention.scaling)
        self._embedding: Tensor = model.model.embed_tokens.weight.detach()
        self._final_norm = Norm(model.model.norm)
        product = partial(Product.of, frozen=frozen, rounds=compute == torch.bfloat16)
        self._layers = layers_of(model, Norm, product)
        self._head = product(model, "", ("lm_head",))
        self._silu = config.hidden_act in ("silu", "swish")
        cos, sin = rotary_tables(model.model, torch.arange(max_context), torch.float32)
        self._rotation = Rotation(cos[:, 0].contiguous().numpy(), sin[:, 0].contiguous().numpy())

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
        assert int(positions.max()) < len(self._rotation.cos), "a token beyond the context"
        crew = muster()
        hidden: Array = embedding(token_ids, self._embedding).float().numpy()
        more = np.zeros_like(hidden)
        for index, layer in enumerate(self._layers):
            x = layer.attention_norm.of_sum(hidden, more)
            attended = self._attend(index, layer, layer.qkv(x, crew), joined, crew)
            x = layer.mlp_norm.of_sum(hidden, layer.output(attended, crew))
            more = layer.down(self._gated(layer, layer.gate_up(x, crew), crew), crew)
        if kept is not None:
            hidden, more = hidden[kept.numpy()], more[kept.numpy()]
        return torch.from_numpy(self._head(self._final_norm.of_sum(hidden, more), crew))

    def _attend(
        self, index: int, layer: Layer[Norm, Product], qkv: Array, slots: JoinedAttention, crew: Words
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
            rotation=self._rotation if layer.rotary else None,
            window=layer.window,
            kept=self._kept,
            crew=crew,
        )
        return attended.reshape(rows, heads * self._size)

    def _gated(self, layer: Layer[Norm, Product], both: Array, crew: Words) -> Array:
        """[N, 2 M] -> [N, M]."""
        y = np.empty((both.shape[0], both.shape[1] // 2), dtype=np.float32)
        if self._silu:
            kernels.gate(both, y, crew)
        else:
            gate, up = torch.from_numpy(both).chunk(2, dim=-1)
            torch.mul(layer.activation(gate), up, out=torch.from_numpy(y))
        return y
