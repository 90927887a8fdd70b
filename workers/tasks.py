"""What the two tasks do, as plain functions: `look` decides whether something is due, `train` runs one job.

A Celery message only rings; the job record is the truth. Both functions are safe to run twice, at any time, anywhere.
No torch in this process: a training is a child process.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable

from rlhf_core.errors import StoreUnavailableError
from rlhf_core.records import Job, JobKind
from rlhf_core.settings import Settings
from rlhf_core.store.jobs import JobStore
from rlhf_core.store.policies import RewardRecord
from workers.collect import collect
from workers.process import STOPPED, run_training
from workers.stores import Stores

log = logging.getLogger(__name__)

LOOK_SECONDS = 2
"""Between two looks."""
RING_SECONDS = 10
"""Between two rings for an attempt that does not begin."""
LEASE_SECONDS = 30.0
HEARTBEAT_SECONDS = 10.0
"""Between two renewals of the lease."""
RECENT_JOBS = 50

Ring = Callable[[str], object]
"""Takes a job id; puts a message into the training queue."""


def look(stores: Stores, settings: Settings, ring: Ring, now: float) -> None:
    """Start what is due: a reward model when enough feedback is unread, then a policy, one job at a time."""
    if not stores.jobs.first_in("look", str(int(now // LOOK_SECONDS)), 10 * LOOK_SECONDS):
        return
    if stores.jobs.active() is not None:
        # A job that nobody holds has lost its process, or its message.
        if (lapsed := stores.jobs.lapsed()) is not None:
            ring_once(stores, lapsed, ring, now)
        return
    if enough_unread(stores, settings):
        collect(stores.interactions, stores.feedback, settings.batches_path, now)
    job = due_job(stores, settings, now)
    if job is not None and stores.jobs.create(job):
        log.info("%s starts on %d batches", job.job_id, len(job.batch_ids))
        ring_once(stores, job, ring, now)


def enough_unread(stores: Stores, settings: Settings) -> bool:
    """Whether to take the unread judgements: enough for a reward model, or the last that a policy training needs."""
    unread, since_policy = stores.feedback.unread(), stores.feedback.since_policy()
    completes = since_policy >= settings.ppo_min_feedback > since_policy - unread
    return unread >= settings.reward_min_feedback or completes


def ring_once(stores: Stores, job: Job, ring: Ring, now: float) -> None:
    """Ring for an attempt, but not at every look: its message may wait behind others."""
    bucket = f"{job.attempts}:{int(now // RING_SECONDS)}"
    if stores.jobs.first_in(f"ring:{job.job_id}", bucket, 10 * RING_SECONDS):
        ring(job.job_id)


def due_job(stores: Stores, settings: Settings, now: float) -> Job | None:
    """The job that should run now, not yet stored; None when all is learned."""
    batch_ids = tuple(stores.feedback.batches())
    if not batch_ids:
        return None
    tried = next((job for job in stores.jobs.recent(RECENT_JOBS) if job.kind == "reward"), None)
    if tried is None or batch_ids[-1] not in tried.batch_ids:
        return _new_job(stores, "reward", batch_ids, now)
    learned = stores.policies.reward()
    # Only what the reward model has learned from counts here, so that the newest judgements are never left behind.
    enough = stores.feedback.since_policy() - stores.feedback.unread() >= settings.ppo_min_feedback
    # A policy is trained once on a batch, however that ended: what failed on it would fail again.
    used = any(batch_ids[-1] in job.batch_ids for job in stores.jobs.recent(RECENT_JOBS) if job.kind == "policy")
    if enough and not used and learned is not None and _covers(learned, batch_ids):
        return _new_job(stores, "policy", batch_ids, now)
    return None


def train(stores: Stores, settings: Settings, job_id: str) -> None:
    """Run a job in a child process until it ends, unless it runs elsewhere or has ended already."""
    owner = uuid.uuid4().hex
    job = stores.jobs.claim(job_id, owner, LEASE_SECONDS)
    if job is None:
        return
    status = run_training(
        [job_id, owner, str(job.fence)],
        settings.train_threads,
        HEARTBEAT_SECONDS,
        Heartbeat(stores.jobs, job, owner),
    )
    # A child that was killed could not give its lease back; now nobody else has to wait for it.
    stores.jobs.release(job_id, owner, stopped_on_purpose=status in STOPPED)
    log.info("%s: attempt %d ended with status %d", job_id, job.fence, status)


class Heartbeat:
    """Called again and again while a job trains: renews its lease, and says whether it is still held."""

    def __init__(self, jobs: JobStore, job: Job, owner: str) -> None:
        self._jobs = jobs
        self._job = job
        self._owner = owner
        self._renewed = time.monotonic()

    def __call__(self) -> bool:
        try:
            kept = self._jobs.extend(self._job.job_id, self._owner, self._job.fence, LEASE_SECONDS)
            # The child's last write gives the lease back: what is no longer running may end in peace.
            kept = kept or self._jobs.get(self._job.job_id).state != "running"
        except StoreUnavailableError:
            return time.monotonic() - self._renewed < LEASE_SECONDS
        self._renewed = time.monotonic()
        return kept


def _covers(learned: RewardRecord, batch_ids: tuple[str, ...]) -> bool:
    """Whether the reward model has seen the newest batch: a policy never climbs a stale one."""
    return learned.judge_checkpoint_id is not None and batch_ids[-1] in learned.batch_ids


def _new_job(stores: Stores, kind: JobKind, batch_ids: tuple[str, ...], now: float) -> Job:
    return Job(
        job_id=f"{kind}-{uuid.uuid4().hex[:12]}",
        kind=kind,
        created_at=now,
        batch_ids=batch_ids,
        last_feedback_at=stores.feedback.last_feedback_at(),
    )
