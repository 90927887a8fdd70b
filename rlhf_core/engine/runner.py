"""Turns a plan into tensors and runs the model once: the only place where both sequences and tensors are known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlhf_core.engine.cache import SlotCache, SlotSpan, SlotStep
from rlhf_core.engine.scheduler import Plan, Span
from rlhf_core.models.load import LoadedPolicy


class Runner:
    """One weight set with its cache."""

    def __init__(self, policy: LoadedPolicy, *, slots: int, max_context: int) -> None:
        self.cache = SlotCache(slots, max_context)
        self._model: Any = policy.model
        self._device = policy.model.device
        # transformers hands a mask of four dimensions through as it is, and so builds none.
        self._no_mask = torch.zeros(1, 1, 1, 1, device=self._device)

    def forward(self, plan: Plan) -> Tensor:
        """Run every token of the plan in one row of the batch -> logits [len(plan.drawing), V].

        The cache then holds the step's keys and values, but the sequences still say otherwise:
        `plan.commit()` follows. A forward that raised can be planned again.
        """
        token_ids, positions, slots = _rows(plan)
        rows = torch.tensor([token_ids, positions, slots], device=self._device)
        output = self._model(
            input_ids=rows[0:1],
            position_ids=rows[1:2],
            attention_mask=self._no_mask,
            use_cache=False,
            logits_to_keep=self._kept_rows(plan),
            slots=self._step(plan, positions, rows),
        )
        logits: Tensor = output.logits[0]
        return logits

    def _step(self, plan: Plan, positions: list[int], rows: Tensor) -> SlotStep:
        decoding = len(plan.decoding)
        lengths = [position + 1 for position in positions[:decoding]]
        longest = max(lengths, default=0)
        return SlotStep(
            cache=self.cache,
            slots=rows[2],
            positions=rows[1],
            decoding=decoding,
            longest=longest,
            visible=None if min(lengths, default=0) == longest else self._visible(rows[1, :decoding], longest),
            spans=_slot_spans(plan.spans, decoding),
        )

    def _visible(self, positions: Tensor, longest: int) -> Tensor:
        beyond = torch.arange(longest, device=self._device) > positions[:, None]
        mask = torch.zeros(beyond.shape, dtype=self._model.dtype, device=self._device)
        return mask.masked_fill_(beyond, float("-inf"))[:, None, None]

    def _kept_rows(self, plan: Plan) -> int | Tensor:
        """Rows that draw a token: 0 means all of them, in transformers' words."""
        if not plan.spans:
            return 0
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
