"""The process that a training runs in: a child that is exec'd, so that the worker itself never loads torch.

The child is in a group of its own, yields the processor to serving, and does not outlive the worker. The worker keeps
the lease: a child that is left alone on a machine without parent-death signals loses its right to write with it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
NICENESS: Final = 10
STOPPED: Final = (128 + signal.SIGTERM, -signal.SIGTERM)
"""Exit statuses of a child that was asked to stop: with and without its own handling."""


def run_training(arguments: list[str], threads: int, beat_seconds: float, may_go_on: Callable[[], bool]) -> int:
    """Run `python -m workers.train_job` with `arguments` to its end and return its exit status.

    `may_go_on` is asked every `beat_seconds`; at a False the child is killed. `threads` 0: torch's choice.
    """
    environment = {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "workers.train_job", *arguments, str(os.getpid())]
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    try:
        while True:
            try:
                return child.wait(beat_seconds)
            except subprocess.TimeoutExpired:
                if not may_go_on():
                    child.kill()
    except BaseException:
        child.terminate()
        raise


def settle_as_child(parent: int) -> None:
    """Called by the child first of all: be nice, and get SIGTERM when the process `parent` ends."""
    os.nice(NICENESS)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            raise SystemExit(f"the worker {parent} ended before its training began")
