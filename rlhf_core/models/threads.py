"""Threads that work on models before and beside serving, and are to be noticed as little as possible.

Python runs one thread at a time. Between two tokens the engine gives up that right hundreds of times, once for each
operation on tensors, and a thread that is loading a model takes it for milliseconds each time: one step then takes as
long as the whole load. So the quiet thread rests of its own accord. It is not made nice: waiting for a processor while
it holds that right, it would hold up everybody.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import FrameType
from typing import TypeVar

import torch

WORK_SECONDS = 0.001
REST_SECONDS = 0.006
"""A step of a small model then meets the quiet thread once at most. Shorter work between the rests makes the slowest
steps beside it faster, and the swap later; measured with the desk, and with the 135 M shape."""
Done = TypeVar("Done")


class QuietThread:
    """Runs one piece of work at a time."""

    def __init__(self, name: str, somebody_waits: Callable[[], bool]) -> None:
        """It rests while `somebody_waits`, and makes haste while nobody does."""
        self._somebody_waits = somebody_waits
        self.executor = ThreadPoolExecutor(1, name, initializer=_compute_alone)

    def quietly(self, work: Callable[[], Done]) -> Callable[[], Done]:
        """`work`, to be given to `executor`: it stops for REST_SECONDS after each WORK_SECONDS."""

        def resting() -> Done:
            # The interpreter calls a profiler at every call and return, in this thread alone: a place to rest.
            sys.setprofile(self._breather())
            try:
                return work()
            finally:
                sys.setprofile(None)

        return resting

    def _breather(self) -> Callable[[FrameType, str, object], None]:
        clock = time.perf_counter
        rest_at = clock() + WORK_SECONDS

        def breathe(_frame: FrameType, _event: str, _argument: object) -> None:
            nonlocal rest_at
            if clock() >= rest_at:
                if self._somebody_waits():
                    time.sleep(REST_SECONDS)
                rest_at = clock() + WORK_SECONDS

        return breathe


def in_passing_thread(work: Callable[[], Done]) -> Done:
    """Do tensor work in a thread that ends with it, and so do the helpers that torch gave it.

    OpenMP gives each thread that computes helpers of its own, and keeps them. As soon as a process has more of all
    these than processors, helpers sleep between two operations instead of spinning, and waking them takes as long as
    a small operation: whoever serves must be the only one who has any.
    """
    with ThreadPoolExecutor(1, "passing") as executor:
        return executor.submit(work).result()


def _compute_alone() -> None:
    """One processor for this thread's tensor work.

    torch keeps the number per thread, but a thread that has not computed yet takes the number that was set last,
    whoever set it: so the number before is set again, by a thread that then ends.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
    restoring.start()
    restoring.join()
