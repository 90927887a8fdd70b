"""Threads that share a kernel's work with the thread that calls it.

OpenMP cuts work into one part a thread and waits for all of them, so a thread without a processor holds up everybody
for as long as another program likes: with one of two processors busy, a server answered at a tenth of its speed. Here
parts are small, and taken by whoever is there: without a helper the caller does them all. A helper looks out for work
for some microseconds, then dozes between its looks, and sleeps when none has come for long, until a step wakes it.
"""

from __future__ import annotations

import threading
import weakref
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_core.models import kernels

IDLE_LOOKS: Final = kernels.AWAKE + 500
"""The last of them dozing: some fifty milliseconds."""

Words = NDArray[np.int64]
"""What the threads of a crew share: see words.py."""


class Crew:
    """The threads that compute for one thread, which is one of them."""

    def __init__(self, hands: int) -> None:
        self.words: Words = np.zeros(kernels.WORDS, dtype=np.int64)
        self.words[kernels.HANDS], self.words[kernels.DOER] = hands, kernels.part_doer()
        self._calls = [threading.Event() for _ in range(hands - 1)]
        for call in self._calls:
            threading.Thread(target=_help, args=(self.words, call), name="crew", daemon=True).start()
        weakref.finalize(self, _dismiss, self.words, self._calls)

    @property
    def hands(self) -> int:
        return int(self.words[kernels.HANDS])

    def muster(self) -> Words:
        """Wake who sleeps; gives what kernels are to be told."""
        for call in self._calls:
            if not call.is_set():
                call.set()
        return self.words


class _Own(threading.local):
    """Each thread's own, as OpenMP has it: it is about threads, and not about what they compute."""

    crew: Crew | None = None


_own = _Own()


def muster() -> Words:
    """The crew of the thread that calls, as many as torch would use for it, awake."""
    crew, hands = _own.crew, torch.get_num_threads()
    if crew is None or crew.hands != hands:
        crew = _own.crew = Crew(hands)
    return crew.muster()


def _help(words: Words, call: threading.Event) -> None:
    while words[kernels.HANDS]:
        call.wait()
        # Before it helps, not after: a call that comes as it ends is for the next time.
        call.clear()
        kernels.help_out(words, IDLE_LOOKS)


def _dismiss(words: Words, calls: list[threading.Event]) -> None:
    words[kernels.HANDS] = 0
    for call in calls:
        call.set()
