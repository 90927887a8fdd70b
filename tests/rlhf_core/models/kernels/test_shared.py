"""Work in parts: done once, whole, and alike whoever does it."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from rlhf_core.models import kernels
from rlhf_core.models.kernels.crew import Crew, Words
from rlhf_core.models.kernels.words import COUNT, DONE, LAST_TURN, TICKET
from tests.rlhf_core.models.kernels.arrays import ALONE, NOTHING, bfloat16, noise


@pytest.mark.parametrize(("rows", "outputs"), [(1, 513), (3, 64), (65, 7), (129, 5), (64, 513), (129, 3), (129, 1)])
def test_two_threads_multiply_exactly_as_one_does(rows: int, outputs: int, crews: dict[int, Words]) -> None:
    # 100 numbers a row: 1 x 513 outputs are past what is worth a thread, and the three that are not take one anyway.
    x, weight, bias = noise(rows, 100), noise(outputs, 100, seed=1), noise(outputs, seed=2)
    one, two = (np.empty((rows, outputs), dtype=np.float32) for _ in range(2))
    kernels.multiply(x, weight, bias, one, 0, ALONE)
    kernels.multiply(x, weight, bias, two, 0, crews[2])
    assert np.array_equal(one, two)
    words, _ = bfloat16(weight)
    for multiply in (kernels.multiply_widened, kernels.multiply_bfloat16):
        multiply(x, words, bias, one, 0, ALONE)
        multiply(x, words, bias, two, 0, crews[2])
        assert np.array_equal(one, two)


def test_a_late_helper_takes_nothing_of_a_task_that_is_not_yet_published() -> None:
    x, weight, y = noise(64, 64), noise(64, 64, seed=1), np.zeros((64, 64), dtype=np.float32)
    crew = Crew(2)
    words = crew.words
    kernels.multiply(x, weight, NOTHING, y, 0, words)
    before = words.copy()
    y[:] = 0
    # The caller has written the number of parts of its next task, and not yet its ticket.
    words[COUNT] += 6
    kernels.help_out(words, 1)
    assert words[TICKET] == before[TICKET]
    assert words[DONE] == before[DONE]
    assert not y.any()


def test_turns_begin_anew_where_their_number_ends() -> None:
    x, weight = noise(64, 64), noise(64, 64, seed=1)
    first, second = (np.zeros((64, 64), dtype=np.float32) for _ in range(2))
    crew = Crew(2)
    words = crew.words
    words[TICKET] = LAST_TURN << 32
    kernels.multiply(x, weight, NOTHING, first, 0, words)
    kernels.multiply(x, weight, NOTHING, second, 0, ALONE)
    assert words[TICKET] >> 32 == 0
    assert np.array_equal(first, second)


def test_many_tasks_in_turn_are_each_done_once_and_whole() -> None:
    crew, weight = Crew(3), noise(512, 64, seed=1)
    for number in range(2000):
        x = noise(1 + number % 3, 64, seed=number)
        y, expected = (np.zeros((len(x), 512), dtype=np.float32) for _ in range(2))
        kernels.multiply(x, weight, NOTHING, y, 0, crew.muster())
        kernels.multiply(x, weight, NOTHING, expected, 0, ALONE)
        assert np.array_equal(y, expected)


@pytest.mark.parametrize("hands", [1, 2])
def test_a_part_that_finds_no_memory_is_an_error_and_the_next_task_is_done(hands: int) -> None:
    # What a process may take is said for all of it, so another one is told.
    script = f"""if True:
        import resource
        import numpy as np
        from rlhf_core.models import kernels
        from rlhf_core.models.kernels.crew import Crew
        crew = Crew({hands})
        rows = np.zeros((2, 60_000_000), dtype=np.float32), np.ones(2, dtype=np.float32), np.zeros(2)
        drawn = np.zeros(2, dtype=np.int64), np.zeros(2, dtype=np.float32)
        kernels.draw(rows[0][:, :9].copy(), *rows[1:], *drawn, crew.muster())
        taken = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + (50 << 20), resource.RLIM_INFINITY))
        try:
            kernels.draw(*rows, *drawn, crew.muster())
        except MemoryError as error:
            print(error)
        kernels.draw(rows[0][:, :9].copy(), *rows[1:], *drawn, crew.muster())
        print(drawn[0].tolist())
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["no memory was left for a part of the work", "[0, 0]"]
