"""Turns a plan into tensors and runs the model once: the only place where both sequences and tensors are known."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from rlhf_core.engine.cache import SlotCache
from rlhf_core.engine.reading import SlotSpan, SlotStep
from rlhf_core.engine.recorded import RecordedDecode, Recorder, cuda_recorder
from rlhf_core.engine.scheduler import Plan, Span
from rlhf_core.models.forward import make_forward
from rlhf_core.models.load import LoadedPolicy


class Runner:
    """One weight set with its cache.

    On CUDA, decode steps are recorded and played back where the forward allows it; `record` does it elsewhere.
    """

    def __init__(self, policy: LoadedPolicy, *, slots: int, max_context: int, record: Recorder | None = None) -> None:
        self.cache = SlotCache(slots, max_context)
        self._device = policy.model.device
        self._forward = policy.forward or make_forward(policy.model, max_context=max_context, frozen=False)
        self.by_kernel = self._forward.by_kernel
        """Whether a kernel draws from the logits."""
        self._record = record
        self._recorded = self._recording()

    def _recording(self) -> RecordedDecode | None:
        """None where decode steps are not recorded."""
        wanted = self._record is not None or self._device.type == "cuda"
        if not wanted or not self._forward.recordable:
            return None
        return RecordedDecode(self._forward, self.cache, self._record or cuda_recorder(), device=self._device)

    def forward(self, plan: Plan) -> Tensor:
        """Run every token of the plan in one row of the batch -> logits [len(plan.drawing), V].

        The cache then holds the step's keys and values, but the sequences still say otherwise:
        `plan.commit()` follows. A forward that raised can be planned again.
        """
        token_ids, positions, slots = _rows(plan)
        if not plan.spans and (logits := self._replay(token_ids, positions)) is not None:
            return logits
        rows = torch.tensor([token_ids, positions, slots], device=self._device)
        return self._forward(rows[0], rows[1], self._kept_rows(plan), self._step(plan, positions, rows))

    def _replay(self, token_ids: list[int], positions: list[int]) -> Tensor | None:
        """Logits of a recorded step; None where steps are not recorded."""
        if self._recorded is None:
            return None
        try:
            return self._recorded(token_ids, positions)
        except RuntimeError as error:
            # Answers matter more than their speed: out of memory for the graphs, say.
            logging.getLogger(__name__).warning("decode steps are not recorded from now on: %s", error)
            self._recorded = None
            return None

    def rest(self) -> None:
        """Give the memory of keys and values back; nothing is running. Not where steps are recorded over it."""
        if self._recorded is None:
            self.cache.clear()

    def clear(self) -> None:
        """Forget keys and values, in particular what is not finite."""
        self.cache.clear()
        if self._recorded is not None:
            # What was recorded over them is gone too.
            self._recorded = self._recording()

    def _step(self, plan: Plan, positions: list[int], rows: Tensor) -> SlotStep:
        decoding = len(plan.decoding)
        return SlotStep(
            cache=self.cache,
            slots=rows[2],
            positions=rows[1],
            lengths=tuple(position + 1 for position in positions[:decoding]),
            spans=_slot_spans(plan.spans, decoding),
        )

    def _kept_rows(self, plan: Plan) -> Tensor | None:
        """Rows that draw a token; None for all of them."""
        if not plan.spans:
            return None
        kept = list(range(len(plan.decoding)))
        row = len(kept)
        for span in plan.spans:
            row += span.end - span.start
            if span.complete:
                kept.append(row - 1)
        return torch.tensor(kept, dtype=torch.long, device=self._device)


def _rows(plan: Plan) -> tuple[list[int], list[int], list[int]]:
    """Token id, position and slot of each row: the decode batch first, then the spans."""
    token_ids = [sequence.token_ids[-1] for sequence in plan.decoding]
    positions = [sequence.cached for sequence in plan.decoding]
    slots = list(range(len(plan.decoding)))
    for span in plan.spans:
        token_ids.extend(span.sequence.request.prompt_token_ids[span.start : span.end])
        positions.extend(range(span.start, span.end))
        slots.extend([span.slot] * (span.end - span.start))
    return token_ids, positions, slots


def _slot_spans(spans: list[Span], first_row: int) -> tuple[SlotSpan, ...]:
    placed = []
    row = first_row
    for span in spans:
        length = span.end - span.start
        placed.append(SlotSpan(span.slot, row, span.start, length))
        row += length
    return tuple(placed)
