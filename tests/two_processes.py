"""A Python program run by two processes that train together, as `accelerate launch` would start them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.running import free_port

ROOT = Path(__file__).resolve().parent.parent


def run_two(*arguments: str, seconds: float = 240.0) -> list[str]:
    """What both printed, in the order of their ranks; `arguments` are Python's. Fails when one of them failed."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    both = [
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        said = [each.communicate(timeout=seconds) for each in both]
    finally:
        for each in both:
            each.kill()
            each.wait()
    assert [each.returncode for each in both] == [0, 0], [errors for _, errors in said]
    return [output for output, _ in said]
