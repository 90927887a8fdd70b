"""The quiet thread: what it does to itself, and that it leaves every other thread as it was."""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from rlhf_core.models.threads import REST_SECONDS, WORK_SECONDS, QuietThread, in_passing_thread

CALLS = 200_000


def toil() -> int:
    """Python that calls, for many times WORK_SECONDS."""
    return sum(abs(-1) for _ in range(CALLS))


def test_it_computes_alone_and_other_threads_old_and_new_do_not() -> None:
    with ThreadPoolExecutor(1) as old:
        old.submit(torch.set_num_threads, 2).result()
        quiet = QuietThread("quiet", lambda: False)
        assert quiet.executor.submit(torch.get_num_threads).result() == 1
        assert old.submit(torch.get_num_threads).result() == 2
        with ThreadPoolExecutor(1) as new:
            assert new.submit(torch.get_num_threads).result() == 2
        quiet.executor.shutdown()
    # Threads that are yet to come go by the last number set, whoever set it.
    torch.set_num_threads(torch.get_num_threads())


def test_it_rests_for_most_of_its_time_while_somebody_waits_and_not_otherwise() -> None:
    rests = 0

    def waits() -> bool:
        nonlocal rests
        rests += 1
        return True

    quiet = QuietThread("quiet", waits)
    started = time.perf_counter()
    assert quiet.executor.submit(quiet.quietly(toil)).result() == CALLS
    # It asks before each rest, and a rest takes its time: so many rests take at least so long.
    assert time.perf_counter() - started >= rests * REST_SECONDS
    assert rests >= 2
    assert quiet.executor.submit(sys.getprofile).result() is None
    quiet.executor.shutdown()


def test_what_the_work_raises_is_raised_and_the_thread_works_on() -> None:
    def fail() -> None:
        raise ValueError("no")

    quiet = QuietThread("quiet", lambda: True)
    with pytest.raises(ValueError, match="no"):
        quiet.executor.submit(quiet.quietly(fail)).result()
    assert quiet.executor.submit(sys.getprofile).result() is None
    assert quiet.executor.submit(quiet.quietly(lambda: 7)).result() == 7
    quiet.executor.shutdown()


def test_it_rests_longer_than_it_works() -> None:
    assert REST_SECONDS >= 2 * WORK_SECONDS


def threads_of_this_process() -> set[str]:
    return {task.name for task in Path("/proc/self/task").iterdir()}


def test_a_passing_thread_takes_the_helpers_of_its_computation_with_it() -> None:
    def compute() -> set[str]:
        torch.set_num_threads(2)
        torch.randn(512, 512) @ torch.randn(512, 512)
        torch.randn(1 << 20).exp()
        return threads_of_this_process()

    threads = torch.get_num_threads()
    try:
        in_passing_thread(compute)  # the first computation of a process starts what stays
        before = threads_of_this_process()
        # Itself and the helper of its two. Threads of earlier tests may end meanwhile.
        assert len(in_passing_thread(compute) - before) == 2
        until = time.monotonic() + 10
        while threads_of_this_process() - before and time.monotonic() < until:
            time.sleep(0.01)
        assert threads_of_this_process() <= before
    finally:
        torch.set_num_threads(threads)


def test_what_a_passing_thread_raises_is_raised() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        in_passing_thread(fail)
