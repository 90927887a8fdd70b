"""Who runs in the next step: admission, prompt chunks, slots. Plain Python over sequences and integers, no
tensors.

A lane holds the running sequences of one resident weight set, in slot order: the sequence at index i owns
slot i of that set's cache. Lanes stay compact, so a decode batch is slots 0..n-1. Only the last sequence of a
lane can still be reading its prompt, because prompts are read first come, first served, and a new one starts
only when the budget of the step is not yet used up.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from rlhf_core.engine.prefixes import PrefixStore
from rlhf_core.engine.sequence import Sequence
from rlhf_core.errors import ConflictError, OverloadedError

if TYPE_CHECKING:
    from rlhf_core.models.load import LoadedPolicy

Move = tuple[int, int]
"""Slot to copy from, slot to copy to."""


@dataclass(eq=False, slots=True)
class Lane:
    """The running sequences of one weight set; index is slot."""

    policy: LoadedPolicy
    prefixes: PrefixStore
    running: list[Sequence] = field(default_factory=list)

    def decoding(self) -> list[Sequence]:
        """Those that draw a token each step: a prefix of the lane."""
        if self.running and self.running[-1].prefilling:
            return self.running[:-1]
        return list(self.running)

    def remove(self, sequence: Sequence) -> list[Move]:
        """Take a sequence out and close the gap. The moves are to be made in order.

        The last decoding sequence fills the gap, and one that is still reading its prompt stays last.
        """
        gap = self.running.index(sequence)
        last = len(self.running) - 1
        moves = []
        if self.running[last].prefilling and gap < last - 1:
            moves.append(self._fill(gap, last - 1))
            gap = last - 1
        if gap < last:
            moves.append(self._fill(gap, last))
        self.running.pop()
        return moves

    def _fill(self, gap: int, source: int) -> Move:
        self.running[gap] = self.running[source]
        return source, gap


@dataclass(frozen=True, slots=True)
class Span:
    """Part of a prompt to read in this step: tokens start..end-1 of `sequence`, which owns `slot`."""

    sequence: Sequence
    slot: int
    start: int
    end: int

    @property
    def complete(self) -> bool:
        """Whether the prompt is read to its end, so that the first token is drawn."""
        return self.end == self.sequence.prompt_length


@dataclass(frozen=True, slots=True)
class Reuse:
    """The beginning of a prompt that is copied to `slot` instead of read."""

    slot: int
    saved: Any
    length: int


@dataclass(frozen=True, slots=True)
class Plan:
    """One forward of one weight set: decoding sequences own slots 0..n-1, spans the slots they name."""

    lane: Lane
    decoding: list[Sequence]
    spans: list[Span]
    reuses: list[Reuse]
    """To be made before the forward."""

    @property
    def drawing(self) -> list[Sequence]:
        """Sequences that draw a token, in the order of the forward's rows."""
        return self.decoding + [span.sequence for span in self.spans if span.complete]

    @property
    def prompt_tokens(self) -> int:
        return sum(span.end - span.start for span in self.spans)

    def commit(self) -> None:
        """The forward ran: its keys and values are in the cache."""
        for sequence in self.decoding:
            sequence.cached += 1
        for span in self.spans:
            span.sequence.cached = span.end


class Scheduler:
    """The waiting queue and the lanes. `max_running` bounds both lanes together."""

    def __init__(self, policy: LoadedPolicy, *, max_running: int, max_waiting: int, max_prefix_tokens: int = 0) -> None:
        self.waiting: deque[Sequence] = deque()
        self._max_prefix_tokens = max_prefix_tokens
        self.active = self._lane(policy)
        self.draining: Lane | None = None
        self._max_running = max_running
        self._max_waiting = max_waiting
        self._begun = ""
        """Group of the sequence that started last."""

    def _lane(self, policy: LoadedPolicy) -> Lane:
        return Lane(policy, PrefixStore(self._max_prefix_tokens))

    @property
    def decoding(self) -> int:
        """Sequences that draw a token in the next step whatever is read."""
        return sum(len(lane.decoding()) for lane in (self.draining, self.active) if lane)

    @property
    def unread(self) -> int:
        """Prompts that are not read to their ends, of those for which there is a slot."""
        reading = self.running - self.decoding
        return reading + min(len(self.waiting), self._max_running - self.running)

    @property
    def running(self) -> int:
        return len(self.active.running) + (len(self.draining.running) if self.draining else 0)

    @property
    def has_room(self) -> bool:
        """Whether one more can be submitted. Requests for which a slot is free do not count as waiting."""
        return len(self.waiting) < self._max_waiting + self._max_running - self.running

    def submit(self, sequence: Sequence) -> None:
        """Append to the waiting queue. Raises OverloadedError when it is full."""
        if not self.has_room:
            raise OverloadedError(f"{len(self.waiting)} requests are waiting, which is the limit")
        self.waiting.append(sequence)

    def schedule(self, budget: int) -> list[Plan]:
        """Plan one step: every decoding sequence, and at most `budget` prompt tokens."""
        plans = []
        for lane in (self.draining, self.active):
            if lane is None:
                continue
            decoding = lane.decoding()
            spans, reuses, budget = self._read_prompts(lane, budget)
            if decoding or spans:
                plans.append(Plan(lane, decoding, spans, reuses))
        return plans

    def _read_prompts(self, lane: Lane, budget: int) -> tuple[list[Span], list[Reuse], int]:
        spans: list[Span] = []
        reuses: list[Reuse] = []
        if lane.running and lane.running[-1].prefilling and budget:
            spans.append(_span(lane, budget))
            budget -= spans[0].end - spans[0].start
        while lane is self.active and budget and self._may_begin():
            reuses += self._begin(lane)
            spans.append(_span(lane, budget))
            budget -= spans[-1].end - spans[-1].start
        return spans, reuses, budget

    def _may_begin(self) -> bool:
        """Whether there is a slot for the next one; a group begins when there is one for each of its members."""
        if not self.waiting:
            return False
        group, needed = self.waiting[0].request.group, 1
        if group and group != self._begun:
            needed = sum(1 for _ in takewhile(lambda s: s.request.group == group, self.waiting))
        return self.running + min(needed, self._max_running) <= self._max_running

    def _begin(self, lane: Lane) -> list[Reuse]:
        sequence = self.waiting.popleft()
        sequence.status = "running"
        sequence.policy = lane.policy
        self._begun = sequence.request.group
        lane.running.append(sequence)
        match = lane.prefixes.match(sequence.request.prompt_token_ids)
        if match is None:
            return []
        prefix, sequence.cached = match
        sequence.reused = sequence.cached
        return [Reuse(len(lane.running) - 1, prefix.saved, sequence.cached)]

    def remove(self, sequence: Sequence) -> tuple[Lane, list[Move]]:
        """Take a running sequence out of its lane. The caller makes the moves in that lane's cache."""
        lane = self.active if sequence.policy is self.active.policy else self.draining
        assert lane is not None, "a running sequence belongs to a resident weight set"
        return lane, lane.remove(sequence)

    def swap(self, policy: LoadedPolicy) -> None:
        """New sequences start on `policy`.

        Raises ConflictError while an older set still has sequences, and between two members of a group.
        """
        if self.waiting and self._begun and self.waiting[0].request.group == self._begun:
            raise ConflictError("a group of answers has begun and must go on where it did")
        if self.draining is not None and self.draining.running:
            raise ConflictError(f"{len(self.draining.running)} answers still run on the previous policy")
        if policy is self.active.policy:
            raise ConflictError(f"policy version {policy.policy_version} is already active")
        self.draining = self.active if self.active.running else None
        self.active = self._lane(policy)

    def drop_drained(self) -> Lane | None:
        """Forget the draining lane once it is empty; returns it when that happened."""
        if self.draining is None or self.draining.running:
            return None
        lane, self.draining = self.draining, None
        return lane


def _span(lane: Lane, budget: int) -> Span:
    """The next part of the last sequence's prompt."""
    slot = len(lane.running) - 1
    sequence = lane.running[slot]
    return Span(sequence, slot, sequence.cached, min(sequence.prompt_length, sequence.cached + budget))
