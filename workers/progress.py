"""Tells the job record what a training is doing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from rlhf_core.errors import StoreUnavailableError
from rlhf_core.records import Job
from rlhf_core.store.jobs import JobStore

LEAST_SECONDS = 0.25
"""Between two reports of one stage: a training of small steps must not write more than it trains."""


class Progress:
    """Called with a stage and the share of the job that is behind, 0 to 1. Raises StaleFenceError.

    A store that is away for a moment loses one report and not the training; whether the job is still ours is asked
    again when it ends.
    """

    def __init__(self, jobs: JobStore, job: Job) -> None:
        self._jobs = jobs
        self._job = job
        self._stage = ""
        self._reported = 0.0

    def __call__(self, stage: str, fraction: float) -> None:
        now = time.monotonic()
        if stage == self._stage and now - self._reported < LEAST_SECONDS:
            return
        self._stage, self._reported = stage, now
        with contextlib.suppress(StoreUnavailableError):
            self._jobs.progress(self._job.job_id, self._job.fence, stage, fraction)

    def part(self, start: float, end: float, name: str = "") -> Callable[[str, float], None]:
        """The same for a part of the job that covers [start, end] of it; `name` replaces the part's own stages."""
        return lambda stage, fraction: self(name or stage, start + (end - start) * fraction)
