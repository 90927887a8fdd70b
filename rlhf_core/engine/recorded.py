"""Decode steps that are recorded once and then played back: CUDA graphs.

A decode step of a small model is hundreds of kernels, and launching them one by one takes a GPU longer than running
them. A graph launches them all at once, but with the shapes and addresses that it was recorded with. So a step is
padded: to a number of rows and to a number of positions that each row reads, both powers of two. Steps that read a
prompt are not recorded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from rlhf_core.engine.cache import SlotCache
from rlhf_core.engine.reading import Reach, decode, hidden_from
from rlhf_core.models.forward import Forward

LEAST_READ: Final = 128
"""Positions that even the shortest step reads."""
_one_at_a_time: Final = threading.Lock()
"""A recording watches the whole device for a moment; a policy that is probed beside serving records too."""

Replay = Callable[[], Tensor]
"""Runs the work again, on what its inputs hold by then; gives the tensor that the recording gave, refilled."""
Recorder = Callable[[Replay], Replay]
"""Runs the work to record it."""


def cuda_recorder() -> Recorder:
    """Records CUDA graphs, all in one pool of memory: whoever replays one is done with what another one gave.

    They are recorded on a stream of their own too. cuBLAS keeps a workspace for each stream, in the pool of whichever
    graph came first, and frees it with that graph: graphs that share a stream must end together.
    """
    pool, beside = torch.cuda.graph_pool_handle(), torch.cuda.Stream()

    def record(work: Replay) -> Replay:
        current = torch.cuda.current_stream()
        # The stream is set back here, because a recording that fails to begin or to end leaves it switched.
        with _one_at_a_time, torch.cuda.stream(current):
            beside.wait_stream(current)
            with torch.cuda.stream(beside):
                # Libraries set themselves up at their first call, which a graph cannot hold.
                work()
            current.wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # Only this thread's calls may not disturb the recording: another one may be loading a model.
            with torch.cuda.graph(graph, pool=pool, stream=beside, capture_error_mode="thread_local"):
                given = work()

        def replay() -> Tensor:
            graph.replay()
            return given

        return replay

    return record


@dataclass(frozen=True, slots=True)
class PaddedStep:
    """Attention of a decode step of fixed shape: row i is one token of slot i, and reads positions 0..read-1 of it."""

    cache: SlotCache
    positions: Tensor
    """[N], of each row's token."""
    read: int
    _rows: dict[int, Tensor] = field(default_factory=dict)
    _reaches: dict[tuple[int, int | None], Reach] = field(default_factory=dict)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None
    ) -> Tensor:
        """query [1, H, N, D], key and value [1, H_kv, N, D] -> [1, N, H, D]; the step's keys and values are stored.

        With a window, the query at position i sees positions i-window+1..i.
        """
        cached = self.cache.layer(layer, key, value)
        cached.store_each(key[0], value[0], self._flat_rows(cached.kv_heads))
        reach = self._reach(cached.kv_heads, window, query.dtype)
        return decode(reach, query[0].transpose(0, 1), cached, scaling).unsqueeze(0)

    def _flat_rows(self, kv_heads: int) -> Tensor:
        if kv_heads not in self._rows:
            slots = torch.arange(len(self.positions), device=self.positions.device)
            self._rows[kv_heads] = self.cache.flat_rows(slots, self.positions, kv_heads)
        return self._rows[kv_heads]

    def _reach(self, kv_heads: int, window: int | None, dtype: torch.dtype) -> Reach:
        """The same for every layer of those heads and that window."""
        if (kv_heads, window) not in self._reaches:
            # A row without a sequence stands behind all that is read, and sees its end: a softmax over nothing is NaN.
            within = self.positions.clamp_max(self.read - 1)
            hidden = hidden_from(within, 0, self.read, kv_heads, window, dtype)
            self._reaches[kv_heads, window] = Reach(0, len(self.positions), 0, self.read, hidden)
        return self._reaches[kv_heads, window]


class RecordedDecode:
    """Decode steps of one weight set, recorded as their sizes first occur."""

    def __init__(self, forward: Forward, cache: SlotCache, record: Recorder, *, device: torch.device) -> None:
        self._forward = forward
        self._cache = cache
        self._record = record
        self._device = device
        self._steps: dict[tuple[int, int], tuple[Tensor, Replay]] = {}
        """Rows and positions read, to the inputs [2, rows] (token ids and positions) and what runs them."""

    def __call__(self, token_ids: list[int], positions: list[int]) -> Tensor:
        """Run the tokens of slots 0..n-1 -> logits [n, V], which the next call overwrites."""
        count = len(token_ids)
        rows = min(_power(count), self._cache.slots)
        read = min(max(LEAST_READ, _power(max(positions) + 1)), self._cache.max_context)
        # The last position of a slot is never a token's, since the last token of a context is drawn and not run: what
        # a row without a sequence writes there is lost on nobody, even where its slot is still reading a prompt.
        spare = rows - count
        filled = torch.tensor([token_ids + [0] * spare, positions + [self._cache.max_context - 1] * spare])
        if (rows, read) not in self._steps:
            self._steps[rows, read] = self._record_step(filled.to(self._device), read)
        else:
            self._steps[rows, read][0].copy_(filled)
        _, replay = self._steps[rows, read]
        return replay()[:count]

    def _record_step(self, inputs: Tensor, read: int) -> tuple[Tensor, Replay]:
        def work() -> Tensor:
            step = PaddedStep(self._cache, inputs[1], read)
            return self._forward(inputs[0], inputs[1], None, step)

        return inputs, self._record(work)


def _power(count: int) -> int:
    """The least power of two that is not below."""
    return 1 << (count - 1).bit_length()
