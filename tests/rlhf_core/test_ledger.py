from pathlib import Path

import pytest
import redis

from rlhf_core.checkpoints import seal
from rlhf_core.errors import CheckpointError, ConflictError, NotFoundError
from rlhf_core.ledger import describe, previous, roll_back
from rlhf_core.records import PolicyVersion
from rlhf_core.store.policies import PolicyStore


def version(number: int, checkpoint_id: str) -> PolicyVersion:
    return PolicyVersion(
        policy_version=number,
        checkpoint_id=checkpoint_id,
        weights_sha256="0" * 64,
        published_at=float(number),
        actor="gate",
        reason="won",
    )


def test_rolling_back_twice_goes_back_twice() -> None:
    ledger = [version(1, "a"), version(2, "b"), version(3, "c")]
    assert previous(ledger, ledger[2]).policy_version == 2
    undone = version(4, "b")
    assert previous([*ledger, undone], undone).policy_version == 1


def test_the_first_policy_has_nothing_before_it() -> None:
    ledger = [version(1, "a"), version(2, "b"), version(3, "a")]
    with pytest.raises(NotFoundError, match="policy 3 is the first"):
        previous(ledger, ledger[2])


@pytest.fixture
def published(redis_client: redis.Redis, tmp_path: Path) -> PolicyStore:
    """Policies 1 and 2, sealed under tmp_path and published."""
    store = PolicyStore(redis_client)
    for number, name in enumerate(("policy-a", "policy-b")):
        manifest = seal(
            tmp_path,
            lambda directory, name=name: (directory / "model.safetensors").write_text(name) and None,  # type: ignore[misc]
            {"checkpoint_id": name, "kind": "policy", "created_at": 1.0},
        )
        store.publish(
            checkpoint_id=name,
            weights_sha256=manifest.weights_sha256,
            actor="server",
            reason="first start",
            now=float(number),
            expected_version=number,
        )
    return store


def test_a_rollback_is_a_new_version_with_the_old_weights(published: PolicyStore, tmp_path: Path) -> None:
    undone = roll_back(published, tmp_path, None, "", 9.0)
    assert (undone.policy_version, undone.checkpoint_id, undone.actor) == (3, "policy-a", "operator")
    assert undone.reason == "rollback from policy 2 to 1"
    assert published.live_version() == 3
    lines = list(describe(published))
    assert len(lines) == 4
    assert lines[-1].startswith("* ")


def test_a_named_version_comes_back_and_the_live_one_is_refused(published: PolicyStore, tmp_path: Path) -> None:
    with pytest.raises(ConflictError, match="which is live already"):
        roll_back(published, tmp_path, 2, "", 9.0)
    with pytest.raises(NotFoundError):
        roll_back(published, tmp_path, 7, "", 9.0)
    assert roll_back(published, tmp_path, 1, "too rude", 9.0).reason == "too rude"


def test_a_damaged_checkpoint_is_not_published_again(published: PolicyStore, tmp_path: Path) -> None:
    (tmp_path / "policy-a" / "model.safetensors").write_text("policy-x")
    with pytest.raises(CheckpointError, match="does not match"):
        roll_back(published, tmp_path, None, "", 9.0)
    assert published.live_version() == 2
