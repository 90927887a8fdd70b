from __future__ import annotations

import pytest
import redis

from rlhf_core.errors import ConflictError, NotFoundError, StaleFenceError
from rlhf_core.records import PolicyVersion
from rlhf_core.store.jobs import JobStore
from rlhf_core.store.policies import PolicyStore
from tests.rlhf_core.store.records_in_store import job


def publish(
    store: PolicyStore, checkpoint_id: str, expected: int, job_id: str | None = None, fence: int | None = None
) -> PolicyVersion:
    return store.publish(
        checkpoint_id=checkpoint_id,
        weights_sha256="ab",
        actor="gate",
        reason="test",
        now=5.0,
        expected_version=expected,
        job_id=job_id,
        fence=fence,
        metrics={"kl": 0.5, "broken": float("nan")},
    )


def test_publishing_moves_the_live_pointer_and_retires_the_one_before(redis_client: redis.Redis) -> None:
    store = PolicyStore(redis_client)
    assert (store.live(), store.live_version()) == (None, 0)
    first = publish(store, "policy-a", 0)
    second = publish(store, "policy-b", 1)
    assert (first.policy_version, first.parent_version) == (1, None)
    assert (second.policy_version, second.parent_version) == (2, 1)
    assert store.live() == second
    assert store.ledger() == [first, second]
    assert (store.state("policy-a"), store.state("policy-b")) == ("retired", "live")
    assert store.version(1) == first


def test_a_metric_that_is_no_number_does_not_spoil_the_ledger(redis_client: redis.Redis) -> None:
    store = PolicyStore(redis_client)
    publish(store, "policy-a", 0)
    assert store.version(1).metrics == {"kl": 0.5}


def test_of_two_publications_onto_one_version_the_second_is_refused(redis_client: redis.Redis) -> None:
    store = PolicyStore(redis_client)
    publish(store, "policy-a", 0)
    with pytest.raises(ConflictError, match="live policy is version 1, not 0"):
        publish(store, "policy-b", 0)
    assert len(store.ledger()) == 1
    assert store.state("policy-b") is None


def test_weights_published_again_are_live_and_not_retired(redis_client: redis.Redis) -> None:
    store = PolicyStore(redis_client)
    publish(store, "policy-a", 0)
    publish(store, "policy-b", 1)
    publish(store, "policy-a", 2)
    assert (store.state("policy-a"), store.state("policy-b"), store.live_version()) == ("live", "retired", 3)


def test_an_attempt_that_lost_its_lease_cannot_publish(redis_client: redis.Redis) -> None:
    store, jobs = PolicyStore(redis_client), JobStore(redis_client)
    jobs.create(job())
    first = jobs.claim("reward-1", "one")
    assert first is not None
    jobs.release("reward-1", "one")
    second = jobs.claim("reward-1", "two")
    assert second is not None
    with pytest.raises(StaleFenceError, match="reward-1"):
        publish(store, "policy-a", 0, "reward-1", first.fence)
    with pytest.raises(StaleFenceError):
        store.set_reward_checkpoint("reward-a", {}, job_id="reward-1", fence=first.fence)
    assert (store.live_version(), store.reward()) == (0, None)
    publish(store, "policy-a", 0, "reward-1", second.fence)
    jobs.finish("reward-1", second.fence, "done")
    with pytest.raises(StaleFenceError):
        publish(store, "policy-b", 1, "reward-1", second.fence)


def test_the_reward_models_in_use_are_kept_together(redis_client: redis.Redis) -> None:
    store = PolicyStore(redis_client)
    assert (store.reward_checkpoint(), store.reward_metrics()) == (None, {})
    store.set_reward_checkpoint("reward-a", {"accuracy": 0.75}, judge_checkpoint_id="reward-b", batch_ids=("b1",))
    reward = store.reward()
    assert reward is not None
    assert (reward.checkpoint_id, reward.judge_checkpoint_id, reward.batch_ids) == ("reward-a", "reward-b", ("b1",))
    assert store.reward_metrics() == {"accuracy": 0.75}


def test_the_first_token_of_a_version_is_noted_once(redis_client: redis.Redis) -> None:
    store = PolicyStore(redis_client)
    assert store.served_at(1) is None
    store.note_served(1, 12.25)
    store.note_served(1, 99.0)
    assert store.served_at(1) == 12.25


def test_an_unknown_version_is_named(redis_client: redis.Redis) -> None:
    with pytest.raises(NotFoundError, match="no policy version 7"):
        PolicyStore(redis_client).version(7)
