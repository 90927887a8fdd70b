"""How the loop stands, for people and for probes. Reads counters and records; never waits for the engine."""

from __future__ import annotations

import asyncio
import importlib.metadata
from dataclasses import dataclass
from typing import Any

from litestar import Response, get
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from rlhf_core.errors import NotFoundError, StoreUnavailableError
from rlhf_core.records import Approval, GateReport, Job, PolicyVersion
from rlhf_core.settings import Settings
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.jobs import JobStore
from rlhf_core.store.policies import PolicyStore
from rlhf_core.wilson import wilson_interval
from server.errors import RETRY_AFTER_SECONDS, fault_of
from server.metrics import Metrics
from server.routes.feedback import as_json
from server.serving import Serving

RECENT_JOBS = 20


@dataclass(frozen=True)
class StatusReader:
    """Gathers the status from the stores. Blocking."""

    settings: Settings
    policies: PolicyStore
    feedback: FeedbackStore
    jobs: JobStore

    def read(self) -> dict[str, Any]:
        ledger = self.policies.ledger()
        active = self.jobs.active()
        recent = self.jobs.recent(RECENT_JOBS)
        ended = [job for job in recent if active is None or job.job_id != active.job_id]
        return {
            "live": self._live(ledger[-1]) if ledger else None,
            "feedback": self._feedback(),
            "training": job_body(active) if active else None,
            "last_job": job_body(ended[0]) if ended else None,
            "approval": [approval_body(counts) for counts in self.feedback.approval()],
            "versions": [self._version(version) for version in ledger],
            "reward": self.policies.reward_metrics(),
            "rejected": [job_body(job) for job in recent if job.state == "rejected"],
        }

    def _live(self, version: PolicyVersion) -> dict[str, Any]:
        return {
            "policy_version": version.policy_version,
            "checkpoint_id": version.checkpoint_id,
            "published_at": version.published_at,
            "since": self.policies.served_at(version.policy_version),
            "weights_sha256": version.weights_sha256,
        }

    def _feedback(self) -> dict[str, int]:
        unread, since_policy = self.feedback.unread(), self.feedback.since_policy()
        reward_min, ppo_min = self.settings.reward_min_feedback, self.settings.ppo_min_feedback
        return {
            "unread": unread,
            "reward_min": reward_min,
            "until_reward": max(0, reward_min - unread),
            "since_policy": since_policy,
            "ppo_min": ppo_min,
            "until_policy": max(0, ppo_min - since_policy),
        }

    def _version(self, version: PolicyVersion) -> dict[str, Any]:
        return {
            "policy_version": version.policy_version,
            "checkpoint_id": version.checkpoint_id,
            "published_at": version.published_at,
            "actor": version.actor,
            "reason": version.reason,
            "served_at": self.policies.served_at(version.policy_version),
            "last_feedback_at": self._last_feedback_at(version.job_id),
            "gate": gate_body(version.gate),
            "metrics": version.metrics,
        }

    def _last_feedback_at(self, job_id: str | None) -> float | None:
        try:
            return self.jobs.get(job_id).last_feedback_at if job_id else None
        except NotFoundError:
            return None


@get("/status")
async def get_status(status: StatusReader, serving: Serving) -> Response[bytes]:
    body = await asyncio.to_thread(status.read)
    return as_json(body | {"serving": {"policy_version": serving.policy.policy_version}})


@get(["/health", "/health/live"])
async def live() -> Response[bytes]:
    """The process runs; stays 200 while it drains."""
    return as_json({"status": "live"})


@get("/health/ready")
async def ready(serving: Serving, policies: PolicyStore) -> Response[bytes]:
    """New work is welcome: the engine runs, the store answers, nobody asked the server to stop."""
    reason = await _unready(serving, policies)
    if reason is None:
        return as_json({"status": "ready", "policy_version": serving.policy.policy_version})
    response = as_json({"status": "not ready", "reason": reason}, 503)
    response.headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    return response


@get("/metrics")
async def metrics_text(serving: Serving, metrics: Metrics) -> Response[bytes]:
    serving.scrape()
    return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


@get("/version")
async def version() -> Response[bytes]:
    return as_json({"name": "attune", "version": importlib.metadata.version("attune")})


async def _unready(serving: Serving, policies: PolicyStore) -> str | None:
    if serving.draining:
        return "server_draining"
    if not serving.alive:
        return "the engine has stopped"
    try:
        await asyncio.to_thread(policies.live_version)
    except StoreUnavailableError as error:
        return fault_of(error).code
    return None


def job_body(job: Job) -> dict[str, Any]:
    return {
        "job_id": job.job_id,
        "kind": job.kind,
        "state": job.state,
        "stage": job.stage,
        "progress": job.progress,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "error": job.error,
        "checkpoint_id": job.checkpoint_id,
        "reasons": job.gate.reasons if job.gate else [],
        "gate": gate_body(job.gate),
        "metrics": job.metrics,
    }


def gate_body(gate: GateReport | None) -> dict[str, Any] | None:
    if gate is None:
        return None
    return {"accepted": gate.accepted, "checks": gate.checks, "metrics": gate.metrics}


def approval_body(counts: Approval) -> dict[str, Any]:
    """The share of thumbs up with its 95 % interval; no value without ratings."""
    lo, hi = wilson_interval(counts.up, counts.n)
    return {
        "policy_version": counts.policy_version,
        "up": counts.up,
        "down": counts.down,
        "n": counts.n,
        "value": counts.up / counts.n if counts.n else None,
        "lo": lo,
        "hi": hi,
        "method": "wilson",
    }


ROUTES = (get_status,)
PROBES = (live, ready, metrics_text, version)
"""Outside /v1: open to everyone who can connect."""
