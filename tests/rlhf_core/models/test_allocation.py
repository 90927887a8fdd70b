"""What is loaded and dropped goes back to the system, measured in a process of its own."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from contextlib import nullcontext
import torch
from rlhf_core.models.allocation import returned_when_dropped

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 >> 20

# A large block that is freed teaches glibc to keep what is smaller.
torch.ones(30 << 18)
kept, before = [], resident()
for _ in range(3):
    with returned_when_dropped() if sys.argv[1] == "returned" else nullcontext():
        weights = [torch.ones(1 << 18) for _ in range(64)]
    # What is allocated among weights stays, and holds on to the heap below it.
    kept += [torch.ones(1 << 10)]
del weights
print(resident() - before)
"""


def held_after(how: str) -> int:
    """MB that a process holds after it has dropped 64 MB of weights."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=120
    )
    return int(ended.stdout)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc on Linux"
)
def test_dropped_weights_are_given_back_and_would_not_be_otherwise() -> None:
    assert held_after("returned") < 16
    assert held_after("as ever") > 48
