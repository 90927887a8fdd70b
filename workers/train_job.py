"""One training, in a process of its own: train, and write down how it ended.

Usage: python -m workers.train_job JOB_ID OWNER FENCE PARENT_PID, by the worker that holds the job's lease as OWNER.
Exit status 0: the job has ended, well or not; 1: this attempt failed and another may follow; 3: another attempt has
taken over; 143: stopped from outside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import time
import traceback
from types import FrameType

from rlhf_core.checkpoints import remove_abandoned
from rlhf_core.errors import AttuneError, StaleFenceError, StoreUnavailableError
from rlhf_core.models.allocation import keep_freed_memory
from rlhf_core.records import Job
from rlhf_core.settings import Settings, load_settings
from rlhf_core.store.jobs import MOST_ATTEMPTS, JobStore
from workers.process import settle_as_child
from workers.progress import Progress
from workers.stores import Stores, open_stores

log = logging.getLogger("workers.train_job")

LOST = 3
"""Exit status of a process that may not write any more."""
ABANDONED_SECONDS = 86_400.0


def main(arguments: list[str]) -> int:
    job_id, owner, fence, parent = arguments
    settle_as_child(int(parent))
    keep_freed_memory()
    signal.signal(signal.SIGTERM, _stop)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    settings = load_settings(os.environ)
    stores = open_stores(settings)
    try:
        job = stores.jobs.get(job_id)
        return attempt(stores, settings, job) if job.fence == int(fence) else LOST
    except SystemExit:
        with contextlib.suppress(StoreUnavailableError):
            stores.jobs.release(job_id, owner, stopped_on_purpose=True)
        raise


def attempt(stores: Stores, settings: Settings, job: Job) -> int:
    """Train, and write an error into the job. What would fail again ends the job; what may not, is tried again."""
    try:
        remove_abandoned(settings.checkpoints_path, ABANDONED_SECONDS, time.time())
        _train(stores, settings, job)
    except StaleFenceError as error:
        log.warning("%s", error)
        return LOST
    except StoreUnavailableError as error:
        log.error("%s", error)
        return 1
    except AttuneError as error:
        log.error("%s failed: %s", job.job_id, error)
        stores.jobs.finish(job.job_id, job.fence, "failed", error=str(error))
    except Exception as error:
        traceback.print_exc()
        return _note_failure(stores.jobs, job, f"{type(error).__name__}: {error}")
    return 0


def _train(stores: Stores, settings: Settings, job: Job) -> None:
    """The imports are here, because they load torch: what needs no training never waits for that."""
    progress = Progress(stores.jobs, job)
    progress("starting", 0.0)
    if job.kind == "reward":
        from workers.reward import train_reward

        train_reward(stores, settings, job, progress)
    else:
        from workers.finetune import train_policy

        train_policy(stores, settings, job, progress)


def _note_failure(jobs: JobStore, job: Job, error: str) -> int:
    if job.attempts >= MOST_ATTEMPTS:
        jobs.finish(job.job_id, job.fence, "dead", error=error)
        return 0
    jobs.progress(job.job_id, job.fence, "waiting for another attempt", 0.0, error=error)
    return 1


def _stop(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
