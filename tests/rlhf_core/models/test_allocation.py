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
    # What is allocated among weights stays, and holds on to the heap below it: too large for a hole further down.
    kept += [torch.ones(1 << 16)]
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


PASSES = """
import ctypes
import resource
import sys
import torch
from rlhf_core.models.allocation import give_freed_memory_back, keep_freed_memory

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * 4096 >> 20

# glibc's first choice of the thresholds, which it then adjusts to what it sees: not the same in every run.
mallopt = ctypes.CDLL(None).mallopt
mallopt(-3, 128 << 10)
mallopt(-1, 128 << 10)
if sys.argv[1] == "kept":
    keep_freed_memory()
for at in range(12):
    if at == 2:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(1 << 20) for _ in range(40)]
    del activations
faults, held = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident()
give_freed_memory_back()
print(faults, held - resident())
"""


def passes(how: str) -> tuple[int, int]:
    """Page faults of ten passes of 160 MB, after two; and the MB that were given back after them when asked."""
    ended = subprocess.run([sys.executable, "-c", PASSES, how], capture_output=True, text=True, check=True, timeout=120)
    faults, freed = ended.stdout.split()
    return int(faults), int(freed)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc on Linux"
)
def test_a_training_pays_for_its_pages_once_and_gives_them_back_when_asked() -> None:
    kept, given_back = passes("kept"), passes("given back")
    assert 4 * kept[0] < given_back[0]
    assert kept[1] > 128 > given_back[1]


PEAK = "from rlhf_core.models.allocation import peak_of_process; print(peak_of_process())"
STARTER = f"""
import subprocess, sys
held = b"x" * (1 << 30)
print(subprocess.run([sys.executable, "-c", {PEAK!r}], capture_output=True, text=True, check=True).stdout)
"""


def test_the_peak_of_a_program_is_its_own_and_not_that_of_the_one_which_started_it() -> None:
    ended = subprocess.run([sys.executable, "-c", STARTER], capture_output=True, text=True, check=True, timeout=120)
    assert 4 << 20 < int(ended.stdout) < 512 << 20
