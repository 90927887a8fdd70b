"""Helpers that come and go."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time

import numpy as np
import torch

from rlhf_core.models import kernels
from rlhf_core.models.kernels.crew import Crew, muster
from tests.rlhf_core.models.kernels.arrays import NOTHING, noise


def test_helpers_end_with_their_crew() -> None:
    crew = Crew(3)
    mine = [thread for thread in threading.enumerate() if thread.name == "crew"][-2:]
    kernels.multiply(noise(64, 64), noise(64, 64), NOTHING, np.zeros((64, 64), np.float32), 0, crew.muster())
    del crew
    gc.collect()
    for thread in mine:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_helper_answers_every_call() -> None:
    # It takes a call before it helps: one that comes while it still helps, or falls asleep, is for the next time.
    crew = Crew(2)
    (call,) = crew._calls
    for _ in range(20):
        crew.muster()
        until = time.monotonic() + 10
        while call.is_set() and time.monotonic() < until:
            time.sleep(0.001)
        assert not call.is_set()


def test_a_thread_has_as_many_hands_as_torch_would_use_for_it() -> None:
    before = torch.get_num_threads()
    try:
        for hands in (1, 2):
            torch.set_num_threads(hands)
            assert muster()[kernels.HANDS] == hands
            assert torch.get_num_threads() == hands
    finally:
        torch.set_num_threads(before)


def test_a_process_that_was_forked_computes_alone() -> None:
    # Helpers are not forked; numba's own threads would end the child here.
    program = """
import os, numpy as np
from rlhf_core.models import kernels
from rlhf_core.models.kernels.crew import Crew
crew = Crew(2)
def product():
    y = np.zeros((64, 64), np.float32)
    kernels.multiply(np.ones((64, 64), np.float32), np.ones((64, 64), np.float32), np.zeros(0, np.float32), y, 0,
                     crew.muster())
    return y.sum()
product()
child = os.fork()
if child == 0:
    os._exit(0 if product() == 64 ** 3 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "0", done.stderr


def test_an_edited_kernel_is_compiled_anew_wherever_it_is_called_from() -> None:
    # numba looks at the file of the calling function alone; the place where code is kept is named for all of them.
    program = "import numba; import rlhf_core.models.kernels; print(numba.config.CACHE_DIR)"
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"}
    place = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True
    ).stdout
    elsewhere = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env=environment | {"NUMBA_CACHE_DIR": "/tmp/kernels"},
        check=True,
    ).stdout
    assert place.strip().rpartition("/")[2] == elsewhere.strip().rpartition("/")[2]
    assert elsewhere.startswith("/tmp/kernels/")
