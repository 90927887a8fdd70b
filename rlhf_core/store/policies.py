"""Policies: the ledger of publications, the live pointer, and the reward models in use.

Publishing is the only way to move the live pointer, so the live version is always the highest one; rolling
back publishes earlier weights under a new version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec
import redis

from rlhf_core.errors import ConflictError, NotFoundError, StaleFenceError
from rlhf_core.records import CheckpointState, GateReport, PolicyVersion
from rlhf_core.store import keys, scripts
from rlhf_core.store.connection import text


class RewardRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The reward models in use: one to train against, another (other prompts, other seed) to judge."""

    checkpoint_id: str
    judge_checkpoint_id: str | None = None
    batch_ids: tuple[str, ...] = ()
    """The feedback that made them."""
    metrics: dict[str, float] = {}


class PolicyStore:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._publish = client.register_script(scripts.PUBLISH)
        self._set_reward = client.register_script(scripts.SET_REWARD)

    def live(self) -> PolicyVersion | None:
        version = self.live_version()
        return self.version(version) if version else None

    def live_version(self) -> int:
        """0 while nothing is published. One read: the swap watcher polls it."""
        return int(self._client.get(keys.LIVE) or 0)

    def ledger(self) -> list[PolicyVersion]:
        """Every publication, oldest first."""
        records = self._client.hvals(keys.LEDGER)
        found = [msgspec.json.decode(record, type=PolicyVersion) for record in records]
        return sorted(found, key=lambda published: published.policy_version)

    def version(self, policy_version: int) -> PolicyVersion:
        record = self._client.hget(keys.LEDGER, str(policy_version))
        if record is None:
            raise NotFoundError(f"no policy version {policy_version}")
        return msgspec.json.decode(record, type=PolicyVersion)

    def publish(
        self,
        *,
        checkpoint_id: str,
        weights_sha256: str,
        actor: str,
        reason: str,
        now: float,
        expected_version: int,
        job_id: str | None = None,
        fence: int | None = None,
        gate: GateReport | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> PolicyVersion:
        """Make a checkpoint live under the next version.

        Raises ConflictError when the live version is not `expected_version`, StaleFenceError when the job named
        has ended or was claimed again since `fence` was handed out.
        """
        published = PolicyVersion(
            policy_version=expected_version + 1,
            checkpoint_id=checkpoint_id,
            weights_sha256=weights_sha256,
            published_at=now,
            actor=actor,
            reason=reason,
            parent_version=expected_version or None,
            job_id=job_id,
            gate=gate,
            metrics=finite(metrics or {}),
        )
        reply = self._publish(
            [keys.LIVE, keys.LEDGER, keys.STATES, keys.job(job_id or "")],
            [
                expected_version,
                published.policy_version,
                msgspec.json.encode(published),
                checkpoint_id,
                _fence(job_id, fence),
            ],
        )
        _raise_if_stale(reply[0], job_id)
        if reply[0] == b"conflict":
            raise ConflictError(
                f"the live policy is version {text(reply[1])}, not {expected_version}: "
                f"{checkpoint_id} was not published"
            )
        return published

    def set_state(self, checkpoint_id: str, state: CheckpointState) -> None:
        self._client.hset(keys.STATES, checkpoint_id, state)

    def state(self, checkpoint_id: str) -> CheckpointState | None:
        state = self._client.hget(keys.STATES, checkpoint_id)
        return None if state is None else msgspec.convert(text(state), CheckpointState)

    def reward(self) -> RewardRecord | None:
        record = self._client.get(keys.REWARD)
        return None if record is None else msgspec.json.decode(record, type=RewardRecord)

    def reward_checkpoint(self) -> str | None:
        """Checkpoint of the reward model to train against."""
        reward = self.reward()
        return reward.checkpoint_id if reward else None

    def reward_metrics(self) -> dict[str, float]:
        reward = self.reward()
        return reward.metrics if reward else {}

    def set_reward_checkpoint(
        self,
        checkpoint_id: str,
        metrics: Mapping[str, float],
        *,
        judge_checkpoint_id: str | None = None,
        batch_ids: tuple[str, ...] = (),
        job_id: str | None = None,
        fence: int | None = None,
    ) -> None:
        """Put reward models to use. Raises StaleFenceError like `publish`."""
        record = RewardRecord(
            checkpoint_id=checkpoint_id,
            judge_checkpoint_id=judge_checkpoint_id,
            batch_ids=batch_ids,
            metrics=finite(metrics),
        )
        arguments: list[bytes | str] = [msgspec.json.encode(record), _fence(job_id, fence)]
        reply = self._set_reward([keys.REWARD, keys.job(job_id or "")], arguments)
        _raise_if_stale(reply[0], job_id)

    def set_reference(self, checkpoint_id: str) -> None:
        self._client.set(keys.REFERENCE, checkpoint_id)

    def reference(self) -> str | None:
        """Checkpoint of the supervised policy that KL is measured against: that of version 1."""
        reference = self._client.get(keys.REFERENCE)
        return None if reference is None else text(reference)

    def note_served(self, policy_version: int, at: float) -> None:
        """Remember when a version's first token left; later calls change nothing."""
        self._client.hsetnx(keys.SERVED, str(policy_version), str(at))

    def served_at(self, policy_version: int) -> float | None:
        at = self._client.hget(keys.SERVED, str(policy_version))
        return None if at is None else float(at)


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics that JSON can hold: one NaN in the ledger would make all of it unreadable."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(value)}


def _fence(job_id: str | None, fence: int | None) -> str:
    """The fence as the script compares it; empty where no job is behind the write."""
    return "" if job_id is None else str(fence or 0)


def _raise_if_stale(code: bytes, job_id: str | None) -> None:
    if code == b"stale":
        raise StaleFenceError(f"job {job_id} has ended or was claimed again: this attempt may not write")
