"""The ledger as an operator reads and continues it: list the policies, publish an earlier one again.

No torch: publishing again is a matter of records and sealed directories.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from rlhf_core.checkpoints import checkpoint_path, verify
from rlhf_core.errors import ConflictError, NotFoundError
from rlhf_core.records import PolicyVersion
from rlhf_core.settings import Settings
from rlhf_core.store.connection import connect
from rlhf_core.store.policies import PolicyStore


def open_store(settings: Settings) -> PolicyStore:
    return PolicyStore(connect(settings.resolved_redis_url))


def describe(store: PolicyStore) -> Iterator[str]:
    """One line per published policy, oldest first; the live one is marked."""
    live = store.live_version()
    yield f"{'':2}{'policy':>6}  {'published':19}  {'checkpoint':20}  {'by':9} reason"
    for version in store.ledger():
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(version.published_at))
        mark = "* " if version.policy_version == live else "  "
        what = f"{version.policy_version:>6}  {when}  {version.checkpoint_id:20}"
        yield f"{mark}{what}  {version.actor:9} {version.reason}"


def roll_back(store: PolicyStore, checkpoints: Path, to_version: int | None, reason: str, now: float) -> PolicyVersion:
    """Publish an earlier policy under a new version; by default the one before the live one's first publication.

    Raises NotFoundError when there is none, CheckpointError when its directory no longer matches its seal,
    ConflictError when another publication came between.
    """
    live = store.live()
    if live is None:
        raise NotFoundError("no policy is published yet")
    target = store.version(to_version) if to_version is not None else previous(store.ledger(), live)
    if target.checkpoint_id == live.checkpoint_id:
        raise ConflictError(
            f"policy {target.policy_version} is checkpoint {target.checkpoint_id}, which is live already"
        )
    verify(checkpoint_path(checkpoints, target.checkpoint_id))
    return store.publish(
        checkpoint_id=target.checkpoint_id,
        weights_sha256=target.weights_sha256,
        actor="operator",
        reason=reason or f"rollback from policy {live.policy_version} to {target.policy_version}",
        now=now,
        expected_version=live.policy_version,
    )


def previous(ledger: list[PolicyVersion], live: PolicyVersion) -> PolicyVersion:
    """The policy before the live weights' first publication, so that rolling back twice goes back twice."""
    first = next(index for index, version in enumerate(ledger) if version.checkpoint_id == live.checkpoint_id)
    if first == 0:
        raise NotFoundError(f"policy {live.policy_version} is the first: there is nothing to roll back to")
    return ledger[first - 1]
