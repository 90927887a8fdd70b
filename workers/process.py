"""The process that a training runs in: a child that is exec'd, so that the worker itself never loads torch.

The child is in a group of its own, yields the processor to serving, and does not outlive the worker.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
NICENESS: Final = 10


def run_training(job_id: str, owner: str, threads: int) -> int:
    """Run `python -m workers.train_job` to its end and return its exit status. `threads` 0: torch's choice."""
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    command = [sys.executable, "-m", "workers.train_job", job_id, owner, str(os.getpid())]
    child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, process_group=0)
    try:
        return child.wait()
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
