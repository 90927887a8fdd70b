"""What glibc does with memory that is freed: of weights that a server drops, and of a training's passes.

glibc keeps freed blocks of up to 32 MB for itself, among what else is in use, so that a server whose weights are
replaced would hold on to most of the old ones for good. Blocks that were taken with the system's own pages are given
back at once; taking all blocks so would cost every step of the engine a round of page faults. So only what is
allocated while weights are loaded is.

A training is the other way round: each pass takes what the one before has freed. glibc gives the end of its heap back
as soon as that is large, and the next pass pays for every page again: with the 5.5 M model of `make bench-learning`
three of four page faults were of this kind, and an update without them took an eighth less. Only between updates, when
it samples, it gives all of it back: keys and values would lie beside memory that waits for the next pass.
"""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_USUAL: Final = 32 << 20
"""glibc's largest own choice of the threshold, to which it comes soon in any process with large tensors."""
_LOADING: Final = 256 << 10
_NEVER: Final = -1
_STATUS: Final = Path("/proc/self/status")


def peak_of_process() -> int:
    """Most bytes that this process has held at a time."""
    if _STATUS.exists():
        # What getrusage says there includes the peak of the program that started this one.
        peak = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    # Kilobytes elsewhere, bytes on macOS.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def keep_freed_memory() -> None:
    """Let this process, which will train and then end, keep what it frees. Does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _USUAL)
        mallopt(_M_TRIM_THRESHOLD, _NEVER)


def give_freed_memory_back() -> None:
    """Give the system what this process has freed and kept. Does nothing without glibc."""
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)


@contextlib.contextmanager
def returned_when_dropped() -> Iterator[None]:
    """Within it, blocks above 256 KB are given back as soon as they are freed. Does nothing without glibc."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        yield
        return
    # To set one threshold ends glibc's own adjusting of both, so the other is set as well.
    mallopt(_M_TRIM_THRESHOLD, 2 * _USUAL)
    mallopt(_M_MMAP_THRESHOLD, _LOADING)
    try:
        yield
    finally:
        mallopt(_M_MMAP_THRESHOLD, _USUAL)
