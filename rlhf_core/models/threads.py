"""Threads that work on models beside serving, and are to be noticed as little as possible."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

NICEST = 19


def quiet_thread(name: str) -> ThreadPoolExecutor:
    """An executor of one thread that computes alone, and only on what the machine has to spare."""
    return ThreadPoolExecutor(1, name, initializer=_be_quiet)


def _be_quiet() -> None:
    _compute_alone()
    # Linux gives each thread its own niceness, under its own id; elsewhere the whole process would get it.
    if hasattr(os, "setpriority") and os.uname().sysname == "Linux":
        with contextlib.suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICEST)


def _compute_alone() -> None:
    """One thread for this thread's tensor work.

    torch keeps the number per thread, but a thread that has not computed yet takes the number that was set last,
    whoever set it: so the number before is set again, by a thread that then ends.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    restoring = threading.Thread(target=torch.set_num_threads, args=(before,))
    restoring.start()
    restoring.join()
