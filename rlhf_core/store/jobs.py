"""Jobs: the truth about each training. At most one is active; whoever trains it holds a lease and a fence.

Leases run on the server's clock. A new claim raises the fence, and every write of an earlier attempt is refused
from then on, however late it arrives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
import redis

from rlhf_core.errors import NotFoundError, StaleFenceError
from rlhf_core.records import GateReport, Job, JobState
from rlhf_core.store import keys, scripts
from rlhf_core.store.connection import text
from rlhf_core.store.policies import finite

MOST_ATTEMPTS = 3


class JobStore:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._create = client.register_script(scripts.JOB_CREATE)
        self._claim = client.register_script(scripts.JOB_CLAIM)
        self._extend = client.register_script(scripts.JOB_EXTEND)
        self._release = client.register_script(scripts.JOB_RELEASE)
        self._progress = client.register_script(scripts.JOB_PROGRESS)
        self._finish = client.register_script(scripts.JOB_FINISH)

    def create(self, job: Job) -> bool:
        """Store a queued job and make it the active one. False while another is active."""
        places = [keys.ACTIVE_JOB, keys.JOBS, keys.job(job.job_id)]
        reply = self._create(places, [job.job_id, *_fields(msgspec.structs.asdict(job))])
        return bool(reply[0] == b"ok")

    def active(self) -> Job | None:
        job_id = self._client.get(keys.ACTIVE_JOB)
        return None if job_id is None else self.get(text(job_id))

    def get(self, job_id: str) -> Job:
        fields = self._client.hgetall(keys.job(job_id))
        if not fields:
            raise NotFoundError(f"no job {job_id}")
        raw = {text(name): msgspec.Raw(_bytes(value)) for name, value in fields.items()}
        return msgspec.json.decode(msgspec.json.encode(raw), type=Job)

    def recent(self, limit: int) -> list[Job]:
        """The newest jobs, newest first."""
        return [self.get(text(job_id)) for job_id in self._client.lrange(keys.JOBS, 0, limit - 1)] if limit else []

    def claim(self, job_id: str, owner: str, lease_seconds: float = 30) -> Job | None:
        """Take the lease and a new fence. None when another holds it or the job has ended.

        A job whose third attempt also ended without a word becomes `dead` here.
        """
        places = [keys.job(job_id), keys.lease(job_id), keys.ACTIVE_JOB]
        arguments: list[str | int] = [job_id, owner, int(lease_seconds * 1000), MOST_ATTEMPTS]
        reply = self._claim(places, arguments)
        if reply[0] == b"missing":
            raise NotFoundError(f"no job {job_id}")
        return self.get(job_id) if reply[0] == b"ok" else None

    def extend(self, job_id: str, owner: str, fence: int, lease_seconds: float = 30) -> bool:
        """Renew the lease. False when it is lost."""
        arguments: list[str | int] = [owner, fence, int(lease_seconds * 1000)]
        reply = self._extend([keys.job(job_id), keys.lease(job_id)], arguments)
        return bool(reply[0] == b"ok")

    def release(self, job_id: str, owner: str, *, stopped_on_purpose: bool = False) -> None:
        """Give the lease back, so that the next attempt need not wait until it lapses.

        An attempt that was `stopped_on_purpose` (the system shuts down) does not count as one.
        """
        self._release([keys.lease(job_id), keys.job(job_id)], [owner, int(stopped_on_purpose)])

    def progress(self, job_id: str, fence: int, stage: str, fraction: float, *, error: str | None = None) -> None:
        """Say what it is doing; `fraction` (0 to 1) never falls within an attempt. Raises StaleFenceError."""
        said: list[Any] = [fence, _json(stage), _json(float(min(1.0, max(0.0, fraction))))]
        extra = _fields({"error": error}) if error is not None else []
        reply = self._progress([keys.job(job_id)], [*said, *extra])
        _raise_if_stale(reply[0], job_id, fence)

    def finish(
        self,
        job_id: str,
        fence: int,
        state: JobState,
        *,
        error: str | None = None,
        checkpoint_id: str | None = None,
        metrics: Mapping[str, float] | None = None,
        gate: GateReport | None = None,
    ) -> None:
        """End the job. Raises StaleFenceError when a later attempt runs or the job ended otherwise."""
        outcome: dict[str, Any] = {
            "error": error,
            "checkpoint_id": checkpoint_id,
            "metrics": finite(metrics or {}),
            "gate": gate,
        }
        if state in ("done", "rejected"):
            outcome["progress"] = 1.0
        places = [keys.job(job_id), keys.lease(job_id), keys.ACTIVE_JOB]
        reply = self._finish(places, [job_id, fence, _json(state), *_fields(outcome)])
        _raise_if_stale(reply[0], job_id, fence)

    def lapsed(self) -> Job | None:
        """The active job when nobody holds its lease: it was never started, or its process is gone."""
        job = self.active()
        if job is None or self._client.exists(keys.lease(job.job_id)):
            return None
        return job

    def first_in(self, task: str, bucket: str, keep_seconds: int) -> bool:
        """Whether this is the first call in the period `bucket`, so that duplicates of a task are harmless."""
        return bool(self._client.set(keys.once(task, bucket), 1, nx=True, ex=keep_seconds))


def _fields(values: Mapping[str, Any]) -> list[Any]:
    return [part for name, value in values.items() for part in (name, _json(value))]


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def _bytes(value: bytes | str) -> bytes:
    return value if isinstance(value, bytes) else value.encode()


def _raise_if_stale(code: bytes, job_id: str, fence: int) -> None:
    if code == b"stale":
        raise StaleFenceError(f"job {job_id}: attempt {fence} has lost its lease, and may not write")
