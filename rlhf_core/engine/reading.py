"""Attention of one step over the slots: which positions each row sees, and the products that read them.

The slots of a cache are compact (the scheduler sees to it), so attention of neighbouring decode rows reads a view
`keys[first:last, :, start:end]`: no gather. Rows of similar length share one call; a row that is much longer or
shorter than its neighbours gets its own, so one long conversation does not make the others read as far as it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from rlhf_core.engine.cache import CachedLayer, SlotCache
from rlhf_core.models.attention import Rotation, hidden_positions, seen_positions

CALL_POSITIONS = 64
"""Positions of a row that can be read in about the time that one more call takes."""
NO_TABLE = np.zeros((0, 1), dtype=np.float32)
PRODUCT_ROWS = 4
"""Decode rows from which two batched products are faster than the fused kernel (see `_attend_by_products`)."""


@dataclass(frozen=True, slots=True)
class SlotSpan:
    """Rows row..row+length-1 of the step are tokens start..start+length-1 of the prompt in `slot`."""

    slot: int
    row: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class Reach:
    """Slots first..last-1 are read from position start to end-1, by the rows that `hidden` belongs to."""

    first: int
    last: int
    start: int
    end: int
    hidden: Tensor | None
    """Added to the scores: 0 where a row sees a position, -inf where not; None when nothing is hidden."""


@dataclass(frozen=True, slots=True)
class SlotStep:
    """One step's attention: N rows, the first of them one token each of slots 0..n-1, then the spans.

    What is the same for every layer (rows to write, positions to read, masks) is worked out once per step.
    """

    cache: SlotCache
    slots: Tensor
    """[N] slot of each row."""
    positions: Tensor
    """[N] position of each row's token within its sequence."""
    lengths: tuple[int, ...]
    """Tokens of each sequence in the decode batch, this step's included; n of them."""
    spans: tuple[SlotSpan, ...]
    _rows: dict[int, Tensor] = field(default_factory=dict)
    _known: dict[tuple[int, int | None], tuple[list[Reach], list[Reach]]] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None
    ) -> Tensor:
        """query [1, H, N, D], key and value [1, H_kv, N, D] -> [1, N, H, D]; the step's keys and values are stored.

        With a window, the query at position i sees positions i-window+1..i.
        """
        cached = self.cache.layer(layer, key, value)
        self._store(cached, key[0], value[0])
        decodes, reads = self._reaches(cached.kv_heads, window, query.dtype)
        rows = query[0].transpose(0, 1)
        parts = [decode(reach, rows, cached, scaling) for reach in decodes]
        for span, reach in zip(self.spans, reads, strict=True):
            parts.append(_read(reach, query[:, :, span.row : span.row + span.length], cached, scaling))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).unsqueeze(0)

    def attend_joined(
        self,
        layer: int,
        qkv: NDArray[np.float32],
        heads: int,
        scaling: np.float32,
        *,
        rotation: Rotation | None,
        window: int | None,
        kept: torch.dtype,
        crew: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """qkv [N, H + 2 H_kv, D], `heads` queries first, is rotated in place -> [N, H, D]: attention by the kernels
        of a CPU. The step's keys and values are stored as `kept`."""
        # Here, because a process that does without kernels does without their compiler too.
        from rlhf_core.models import kernels

        new = torch.empty((qkv.shape[1] - heads) // 2, 1, qkv.shape[2], dtype=kept)
        cached = self.cache.layer(layer, new, new)
        kind = kernels.BFLOAT16 if kept == torch.bfloat16 else kernels.FLOAT32
        keys, values = (tensor.view(torch.int32).numpy() for tensor in (cached.keys, cached.values))
        positions, count = self.positions.numpy(), len(self.lengths)
        cos, sin = (rotation.cos, rotation.sin) if rotation else (NO_TABLE, NO_TABLE)
        attended = np.empty((qkv.shape[0], heads, qkv.shape[2]), dtype=np.float32)
        where = keys, values, self.slots.numpy(), positions
        # Attention stores the decode batch's keys and values on the way, where it rotates them.
        kernels.store(kind, qkv, count if rotation else 0, heads, cos, sin, *where)
        kernels.attend(kind, qkv, 0, count, cos, sin, *where, window or 0, scaling, attended, crew)
        for span in self.spans:
            read = span.row, span.length, keys, values, span.slot, span.start
            kernels.attend_span(kind, qkv, *read, window or 0, scaling, attended, crew)
        return attended

    def _bounded(self, window: int | None) -> int | None:
        """None where it hides nothing of any slot."""
        return None if window is None or window >= self.cache.max_context else window

    def _store(self, cached: CachedLayer, key: Tensor, value: Tensor) -> None:
        """key and value [H_kv, N, D]. A span is one copy; the decode batch's rows lie apart."""
        if count := len(self.lengths):
            cached.store_each(key[:, :count], value[:, :count], self._flat_rows(cached.kv_heads))
        for span in self.spans:
            end = span.row + span.length
            cached.store_run(key[:, span.row : end], value[:, span.row : end], span.slot, span.start)

    def _flat_rows(self, kv_heads: int) -> Tensor:
        """[n * H_kv] where the heads of the decode batch's tokens go in the flat views of a layer."""
        if kv_heads not in self._rows:
            count = len(self.lengths)
            self._rows[kv_heads] = self.cache.flat_rows(self.slots[:count], self.positions[:count], kv_heads)
        return self._rows[kv_heads]

    def _reaches(self, kv_heads: int, window: int | None, dtype: torch.dtype) -> tuple[list[Reach], list[Reach]]:
        """Of the decode batch, and of each span."""
        key = (kv_heads, window)
        if key not in self._known:
            seen = self._bounded(window)
            bounds = [(0 if seen is None else max(0, length - seen), length) for length in self.lengths]
            decodes = [Reach(*run, self._hidden_beyond(bounds, *run, kv_heads, seen, dtype)) for run in runs(bounds)]
            self._known[key] = decodes, [self._span_reach(span, seen, dtype) for span in self.spans]
        return self._known[key]

    def _hidden_beyond(
        self,
        bounds: list[tuple[int, int]],
        first: int,
        last: int,
        start: int,
        end: int,
        kv_heads: int,
        window: int | None,
        dtype: torch.dtype,
    ) -> Tensor | None:
        """[last - first, H_kv, 1, end - start]; None when all these rows see start..end-1."""
        if all(bound == (start, end) for bound in bounds[first:last]):
            return None
        return hidden_from(self.positions[first:last], start, end, kv_heads, window, dtype)

    def _span_reach(self, span: SlotSpan, window: int | None, dtype: torch.dtype) -> Reach:
        """What a prompt part sees. `hidden` [length, end - start] is None when it is plainly causal."""
        end = span.start + span.length
        start = 0 if window is None else max(0, span.start - window + 1)
        hidden = None
        if span.start or (window is not None and window < end):
            seen = seen_positions(self.positions[span.row : span.row + span.length], start, end, window)
            hidden = hidden_positions(seen, dtype)
        return Reach(span.slot, span.slot + 1, start, end, hidden)


def runs(bounds: Sequence[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Split rows that see positions (start, end) into runs (first, last, start, end) of neighbours to read together.

    Greedy: a row joins the run before it unless the positions that it makes others read in vain, or reads in vain
    itself, cost more than a call of its own.
    """
    found: list[tuple[int, int, int, int]] = []
    for row, (start, end) in enumerate(bounds):
        if found:
            first, last, low, high = found[-1]
            joined_low, joined_high = min(low, start), max(high, end)
            joined = (row + 1 - first) * (joined_high - joined_low)
            apart = (last - first) * (high - low) + (end - start)
            if joined <= apart + CALL_POSITIONS:
                found[-1] = (first, row + 1, joined_low, joined_high)
                continue
        found.append((row, row + 1, start, end))
    return found


def hidden_from(
    positions: Tensor, start: int, end: int, kv_heads: int, window: int | None, dtype: torch.dtype
) -> Tensor:
    """`hidden` [N, H_kv, 1, end - start] of decode rows whose tokens stand at `positions` [N]."""
    seen = seen_positions(positions, start, end, window)
    return hidden_positions(seen, dtype)[:, None, None].expand(-1, kv_heads, -1, -1).contiguous()


def decode(reach: Reach, query: Tensor, cached: CachedLayer, scaling: float) -> Tensor:
    """query [N, H, D], rows first..last-1 of it -> [last - first, H, D_value].

    Query heads that share a key head become the query length: no key is repeated.
    """
    n, kv_heads = reach.last - reach.first, cached.kv_heads
    mine = query if n == query.shape[0] else query[reach.first : reach.last]
    keys = cached.keys[reach.first : reach.last, :, reach.start : reach.end]
    values = cached.values[reach.first : reach.last, :, reach.start : reach.end]
    group = query.shape[1] // kv_heads
    if n >= PRODUCT_ROWS and group > 1 and query.dtype == torch.float32 and not query.is_cuda:
        output = _attend_by_products(mine.reshape(n * kv_heads, group, -1), keys, values, reach.hidden, scaling)
    else:
        grouped = mine.reshape(n, kv_heads, group, -1)
        output = scaled_dot_product_attention(grouped, keys, values, reach.hidden, scale=scaling)
    return output.reshape(n, query.shape[1], -1)


def _attend_by_products(query: Tensor, keys: Tensor, values: Tensor, hidden: Tensor | None, scaling: float) -> Tensor:
    """query [n * H_kv, G, D], keys and values [n, H_kv, L, D] -> [n * H_kv, G, D_value].

    Where several queries share a key head, two batched products are faster on a CPU of several cores than the fused
    kernel, by a tenth to a quarter; slots and heads merge into one dimension without a copy.
    """
    addend = query.new_zeros(()) if hidden is None else hidden.flatten(0, 1)
    beta = 0 if hidden is None else 1
    scores = torch.baddbmm(addend, query, keys.flatten(0, 1).transpose(1, 2), beta=beta, alpha=scaling)
    return torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1))


def _read(reach: Reach, query: Tensor, cached: CachedLayer, scaling: float) -> Tensor:
    """Attention of one prompt part over its slot: query [1, H, length, D] -> [length, H, D_value]."""
    output = scaled_dot_product_attention(
        query,
        cached.keys[reach.first : reach.last, :, reach.start : reach.end],
        cached.values[reach.first : reach.last, :, reach.start : reach.end],
        reach.hidden,
        is_causal=reach.hidden is None,
        scale=scaling,
        enable_gqa=cached.kv_heads != query.shape[1],
    )
    return output[0].transpose(0, 1)
