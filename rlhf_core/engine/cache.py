"""Keys and values of running sequences, one slot each.

A cache is bounded: slots x max_context tokens, whatever arrives. One cache per weight set: keys and values of two
policies never meet. Knows nothing of requests, and nothing of how attention reads it (`reading.py`).
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass

import torch
from torch import Tensor

SavedPrefix = dict[int, tuple[Tensor, Tensor]]
"""Layer to keys [H_kv, length, D_key] and values [H_kv, length, D_value]: a copy, which outlives its slot."""


@dataclass(frozen=True, slots=True)
class CachedLayer:
    """One layer's tensors. A row of the flat views is one head's key or value at one position of one slot."""

    keys: Tensor
    """[slots, H_kv, max_context, D_key]."""
    values: Tensor
    """[slots, H_kv, max_context, D_value]; some models have values of another size than their keys."""

    @property
    def kv_heads(self) -> int:
        return self.keys.shape[1]

    def store_each(self, key: Tensor, value: Tensor, rows: Tensor) -> None:
        """key and value [H_kv, N, D] into `rows` [N * H_kv] of the flat views, heads of one token together."""
        for tensor, new in ((self.keys, key), (self.values, value)):
            size = tensor.shape[3]
            tensor.view(-1, size).index_copy_(0, rows, new.transpose(0, 1).reshape(-1, size))

    def store_run(self, key: Tensor, value: Tensor, slot: int, start: int) -> None:
        """key and value [H_kv, N, D] into positions start..start+N-1 of one slot."""
        end = start + key.shape[1]
        self.keys[slot, :, start:end] = key
        self.values[slot, :, start:end] = value


class SlotCache:
    """Per layer, keys and values of every slot.

    A layer's tensors are made when it first attends, zeroed: masked positions are read with weight 0, and 0
    times uninitialised memory may be NaN. Zeroed pages cost no memory on a CPU before something is written to
    them.
    """

    def __init__(self, slots: int, max_context: int) -> None:
        self.max_context = max_context
        self.slots = slots
        self._layers: dict[int, CachedLayer] = {}

    def layer(self, index: int, key: Tensor, value: Tensor) -> CachedLayer:
        """One layer; `key` and `value` [..., H_kv, N, D] give its shapes, type and device when it is new."""
        if index not in self._layers:
            self._layers[index] = CachedLayer(self._zeros(key), self._zeros(value))
        return self._layers[index]

    def flat_rows(self, slots: Tensor, positions: Tensor, kv_heads: int) -> Tensor:
        """slots and positions [N] -> [N * H_kv] rows of a layer's flat views, heads of one token together."""
        heads = slots[:, None] * kv_heads + torch.arange(kv_heads, device=slots.device)
        return (heads * self.max_context + positions[:, None]).flatten()

    def _zeros(self, like: Tensor) -> Tensor:
        shape = (self.slots, like.shape[-3], self.max_context, like.shape[-1])
        if like.device.type != "cpu":
            return like.new_zeros(shape)
        # torch would write the zeros, which takes a tenth of a second between two tokens; the system's are free.
        pages = mmap.mmap(-1, math.prod(shape) * like.element_size())
        return torch.frombuffer(pages, dtype=like.dtype).view(shape)

    @property
    def bytes(self) -> int:
        """What the tensors of all layers occupy once every slot has been used."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self._layers.values())

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another."""
        for layer in self._layers.values():
            for tensor in (layer.keys, layer.values):
                tensor[target, :, :length] = tensor[source, :, :length]

    @torch.inference_mode()
    def copy_out(self, slot: int, length: int) -> SavedPrefix:
        """The first `length` positions of a slot, bit for bit."""
        return {
            index: (layer.keys[slot, :, :length].clone(), layer.values[slot, :, :length].clone())
            for index, layer in self._layers.items()
        }

    @torch.inference_mode()
    def copy_in(self, slot: int, saved: SavedPrefix, length: int) -> None:
        """Write the first `length` positions of `saved` to the beginning of a slot.

        For a cache of the same weights: keys of another policy would be read as if they were this one's.
        """
        for index, (keys, values) in saved.items():
            layer = self.layer(index, keys, values)
            layer.keys[slot, :, :length] = keys[:, :length]
            layer.values[slot, :, :length] = values[:, :length]

    def clear(self) -> None:
        """Forget everything, in particular what is not finite."""
        self._layers.clear()
