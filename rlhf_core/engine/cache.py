"""Keys and values of running sequences, one slot each, and attention over them.

The slots of a cache are compact (the scheduler sees to it), so attention of a decode batch reads the view
`cache[:n, :, :longest]`: no gather, and the cost of a step follows the sequences that run, not the slots
configured. One cache per weight set: keys and values of two policies never meet. Knows nothing of requests.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class SlotCache:
    """Per layer, keys and values [slots, H_kv, max_context, D]; bounded by slots x max_context.

    A layer's tensors are made when it first attends, zeroed: masked positions are read with weight 0, and 0
    times uninitialised memory may be NaN. Zeroed pages cost no memory on a CPU before something is written to
    them.
    """

    def __init__(self, slots: int, max_context: int) -> None:
        self._slots = slots
        self._max_context = max_context
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def layer(self, index: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of one layer; `like` [1, H_kv, N, D] gives their shape, type and device."""
        if index not in self._layers:
            shape = (self._slots, like.shape[1], self._max_context, like.shape[3])
            self._layers[index] = (like.new_zeros(shape), like.new_zeros(shape))
        return self._layers[index]

    @torch.inference_mode()
    def move(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot over another."""
        for tensors in self._layers.values():
            for tensor in tensors:
                tensor[target, :, :length] = tensor[source, :, :length]

    def clear(self) -> None:
        """Forget everything, in particular what is not finite."""
        self._layers.clear()


@dataclass(frozen=True, slots=True)
class SlotSpan:
    """Rows row..row+length-1 of the step are tokens start..start+length-1 of the prompt in `slot`."""

    slot: int
    row: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class SlotStep:
    """One step's attention: N rows, the first `decoding` of them one token each of slots 0..decoding-1."""

    cache: SlotCache
    slots: Tensor
    """[N] slot of each row."""
    positions: Tensor
    """[N] position of each row's token within its sequence."""
    decoding: int
    longest: int
    """Positions that the decode batch looks at: the longest of its sequences, this token included."""
    visible: Tensor | None
    """[decoding, 1, 1, longest], 0 where a position belongs to the sequence, -inf beyond; None when all are equal."""
    spans: tuple[SlotSpan, ...]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """query [1, H, N, D], key and value [1, H_kv, N, D] -> [1, N, H, D]; the step's keys and values are stored."""
        keys, values = self.cache.layer(layer, key)
        keys[self.slots, :, self.positions] = key[0].transpose(0, 1)
        values[self.slots, :, self.positions] = value[0].transpose(0, 1)
        rows = []
        if self.decoding:
            rows.append(self._decode(query, keys, values, scaling))
        for span in self.spans:
            rows.append(_read(span, query, keys, values, scaling))
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).unsqueeze(0)

    def _decode(self, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
        """-> [decoding, H, D]. Query heads that share a key head become the query length: no key is repeated."""
        n, heads, size = self.decoding, query.shape[1], query.shape[3]
        grouped = query[0, :, :n].transpose(0, 1).reshape(n, keys.shape[1], -1, size)
        output = scaled_dot_product_attention(
            grouped, keys[:n, :, : self.longest], values[:n, :, : self.longest], self.visible, scale=scaling
        )
        return output.reshape(n, heads, size)


def _read(span: SlotSpan, query: Tensor, keys: Tensor, values: Tensor, scaling: float) -> Tensor:
    """Causal attention of one prompt part over its slot -> [length, H, D]."""
    end = span.start + span.length
    part = query[:, :, span.row : span.row + span.length]
    slot = slice(span.slot, span.slot + 1)
    mask = None
    if span.start:
        mask = torch.ones(span.length, end, dtype=torch.bool, device=part.device).tril(span.start)
    output = scaled_dot_product_attention(
        part,
        keys[slot, :, :end],
        values[slot, :, :end],
        mask,
        is_causal=mask is None,
        scale=scaling,
        enable_gqa=keys.shape[1] != part.shape[1],
    )
    return output[0].transpose(0, 1)
