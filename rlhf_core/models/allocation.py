"""Weights that go back to the system when they are dropped.

glibc keeps freed blocks of up to 32 MB for itself, among what else is in use, so that a server whose weights are
replaced would hold on to most of the old ones for good. Blocks that were taken with the system's own pages are given
back at once; taking all blocks so would cost every step of the engine a round of page faults. So only what is
allocated while weights are loaded is.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from typing import Final

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_USUAL: Final = 32 << 20
"""glibc's largest own choice of the threshold, to which it comes soon in any process with large tensors."""
_LOADING: Final = 256 << 10


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
