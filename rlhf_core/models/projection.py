"""Linear maps as serving applies them: several modules that read the same input as one matrix product, with a LoRA
adapter's low-rank term beside it.

Frozen weights may also be packed: copied once into the layout that oneDNN multiplies fastest for a handful of rows,
which is what a decode step has. On a CPU in float32 serving does without (models/compiled.py); there, with two threads
of AVX2, it was 1.3 to 2.7 times torch's plain speed up to 64 rows, and with one thread up to some 16.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

if TYPE_CHECKING:
    from rlhf_core.models.lora import Adapter

PACKED_ROWS = 16
"""Rows that the packed layout is chosen for. Others are computed as exactly, if not always as fast; a layout for eight
was slower for one row and no faster for eight."""
LEAST_PACKED = 1 << 18
"""Weights below which a call into oneDNN costs more than its layout saves."""
MOST_ROWS = 16
MOST_ROWS_OF_A_TALL_ONE = 64
TALL = 1 << 14
"""Output features from which the plain product is slow for more rows too: vocabularies."""


@dataclass(frozen=True, slots=True)
class LowRank:
    """LoRA's term of one projection: x -> (x @ down) @ up."""

    down: Tensor
    """[in, r]"""
    up: Tensor
    """[r, out], the adapter's scaling included"""


class LivePart:
    """The modules as they stand: whoever trains their weights changes what this computes."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules: list[Any] = list(modules)

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, sum of out]."""
        parts = [linear(x, module.weight, module.bias) for module in self._modules]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


class FrozenPart:
    """The modules' weights joined, their own becoming views of it; packed beside that if `pack` and it pays."""

    def __init__(self, modules: Sequence[nn.Module], *, pack: bool) -> None:
        joined: list[Any] = list(modules)
        self._weight = joined[0].weight if len(joined) == 1 else join(joined)
        biases = [module.bias for module in joined]
        # Of joined projections all have a bias or none has: that is how every family builds them.
        self._bias = None if biases[0] is None else torch.cat([bias.detach() for bias in biases])
        self._packed = _pack(self._weight) if pack and _pays(self._weight) else None
        self._most_rows = _most_rows(self._weight.shape[0])

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, sum of out]."""
        if self._packed is None or x.shape[0] > self._most_rows:
            return linear(x, self._weight, self._bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, "none", [], "")
        return product


class CastPart:
    """The modules' weights joined, in another type and as they were at the last refresh: what autocast multiplies."""

    def __init__(self, modules: Sequence[nn.Module], *, dtype: torch.dtype) -> None:
        self._modules: list[Any] = list(modules)
        weights = [module.weight for module in self._modules]
        # Weights of that type already are frozen ones, kept in it on purpose: no copy of them is needed.
        self._shared = all(weight.dtype == dtype for weight in weights)
        if self._shared:
            self._weight = weights[0] if len(weights) == 1 else join(self._modules)
        else:
            rows = sum(weight.shape[0] for weight in weights)
            self._weight = torch.empty(rows, weights[0].shape[1], dtype=dtype, device=weights[0].device)
        self._bias: Tensor | None = None
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        if not self._shared:
            rows = [module.weight.shape[0] for module in self._modules]
            for module, part in zip(self._modules, self._weight.split(rows), strict=True):
                part.copy_(module.weight)
        biases = [module.bias for module in self._modules]
        self._bias = None if biases[0] is None else torch.cat([bias.to(self._weight.dtype) for bias in biases])

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, sum of out], in the other type."""
        return linear(x.to(self._weight.dtype), self._weight, self._bias)


def join(modules: Sequence[Any]) -> Tensor:
    """One weight for all, in whose memory theirs lie from now on."""
    weight = torch.cat([module.weight.detach() for module in modules])
    row = 0
    for module in modules:
        rows = module.weight.shape[0]
        module.weight.data = weight[row : row + rows]
        row += rows
    return weight


def _pays(weight: Tensor) -> bool:
    if weight.device.type != "cpu" or weight.numel() < LEAST_PACKED or not torch.backends.mkldnn.is_available():
        return False
    return weight.dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _most_rows(out_features: int) -> int:
    """Rows up to which the packed layout is the faster one, in a process of as many threads as this one."""
    if torch.get_num_threads() > 1:
        return sys.maxsize
    return MOST_ROWS_OF_A_TALL_ONE if out_features >= TALL else MOST_ROWS


def _pack(weight: Tensor) -> Tensor:
    with torch.no_grad():
        packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().clone(), PACKED_ROWS)
    return packed


class Projection:
    """One product for modules that share their input, and an adapter's term where there is one."""

    def __init__(
        self,
        part: LivePart | FrozenPart | CastPart,
        modules: Sequence[tuple[str, int]],
        term: LowRank | None = None,
    ) -> None:
        self._part = part
        self._modules = modules
        """(name, out features) of each module, in the order of the joined output."""
        self._term = term

    def __call__(self, x: Tensor) -> Tensor:
        """[N, in] -> [N, out]."""
        y = self._part(x)
        return y if self._term is None else y.addmm_(x.to(y.dtype) @ self._term.down, self._term.up)

    def refresh(self) -> None:
        """Copy the modules' weights again, where a copy of them is what this multiplies."""
        if isinstance(self._part, CastPart):
            self._part.refresh()

    def adapted(self, adapter: Adapter) -> Projection:
        """The same weights beside an adapter's term."""
        return Projection(self._part, self._modules, adapter.joined(self._modules))
