from __future__ import annotations

import msgspec
import pytest
import redis

from rlhf_core.errors import StaleFenceError
from rlhf_core.records import GateCheck, GateReport, Job
from rlhf_core.store import keys
from rlhf_core.store.jobs import JobStore
from tests.rlhf_core.store.records_in_store import job


def claimed(store: JobStore, owner: str = "one") -> Job:
    found = store.claim("reward-1", owner)
    assert found is not None
    return found


def test_one_job_is_active_at_a_time(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    assert store.create(job())
    assert store.create(job())  # sent again
    assert not store.create(job("policy-1", "policy"))
    assert store.active() == job()
    store.finish("reward-1", claimed(store).fence, "done")
    assert store.active() is None
    assert store.create(job("policy-1", "policy"))
    assert [each.job_id for each in store.recent(10)] == ["policy-1", "reward-1"]


def test_a_job_survives_the_store_with_every_field(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    check = GateCheck(name="win_rate", value=0.4, bound=0.5, passed=False, reason="lost")
    report = GateReport(checkpoint_id="c", parent_version=1, created_at=2.0, checks=(check,))
    full = msgspec.structs.replace(job(), batch_ids=("b1", "b2"), last_feedback_at=1.5)
    store.create(full)
    assert store.get("reward-1") == full
    store.finish("reward-1", claimed(store).fence, "rejected", checkpoint_id="c", metrics={"kl": 1.0}, gate=report)
    ended = store.get("reward-1")
    assert (ended.state, ended.checkpoint_id, ended.metrics, ended.gate) == ("rejected", "c", {"kl": 1.0}, report)
    assert ended.finished_at is not None


def test_a_claim_excludes_others_until_the_lease_is_gone(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    store.create(job())
    assert store.lapsed() is not None
    first = claimed(store)
    assert (first.state, first.attempts, first.fence) == ("running", 1, 1)
    assert claimed(store) == first  # sent again by the same owner
    assert store.claim("reward-1", "two") is None
    assert store.lapsed() is None
    redis_client.delete(keys.lease("reward-1"))  # as if it had expired
    assert store.lapsed() is not None
    assert not store.extend("reward-1", "one", first.fence)
    second = claimed(store, "two")
    assert (second.attempts, second.fence, second.started_at) == (2, 2, first.started_at)
    assert store.extend("reward-1", "two", second.fence)
    assert not store.extend("reward-1", "two", first.fence)


def test_a_lease_runs_out_on_the_servers_clock(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    store.create(job())
    store.claim("reward-1", "one", lease_seconds=30)
    assert 29_000 < redis_client.pttl(keys.lease("reward-1")) <= 30_000


def test_an_earlier_attempt_may_not_write(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    store.create(job())
    first = claimed(store)
    store.release("reward-1", "one")
    claimed(store, "two")
    with pytest.raises(StaleFenceError):
        store.progress("reward-1", first.fence, "late", 0.9)
    with pytest.raises(StaleFenceError):
        store.finish("reward-1", first.fence, "done")
    assert store.get("reward-1").state == "running"


def test_progress_never_falls_within_an_attempt(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    store.create(job())
    fence = claimed(store).fence
    for stage, fraction in (("rollouts 1/8", 0.5), ("rollouts 2/8", 0.25)):
        store.progress("reward-1", fence, stage, fraction)
    assert (store.get("reward-1").stage, store.get("reward-1").progress) == ("rollouts 2/8", 0.5)
    store.progress("reward-1", fence, "gate", 7.0)
    assert store.get("reward-1").progress == 1.0


def test_a_job_that_kills_its_process_three_times_is_dead(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    store.create(job())
    for attempt in ("one", "two", "three"):
        claimed(store, attempt)
        store.release("reward-1", attempt)
    assert store.claim("reward-1", "four") is None
    dead = store.get("reward-1")
    assert (dead.state, dead.attempts) == ("dead", 3)
    assert dead.error == "its process ended 3 times without a word"
    assert store.active() is None


def test_being_stopped_on_purpose_costs_no_attempt(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    store.create(job())
    for attempt in range(5):
        assert claimed(store, str(attempt)).fence == attempt + 1
        store.release("reward-1", str(attempt), stopped_on_purpose=True)
    assert store.get("reward-1").attempts == 0


def test_finishing_twice_is_harmless_and_finishing_otherwise_is_refused(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    store.create(job())
    fence = claimed(store).fence
    store.finish("reward-1", fence, "failed", error="no judgements")
    store.finish("reward-1", fence, "failed", error="no judgements")
    with pytest.raises(StaleFenceError):
        store.finish("reward-1", fence, "done")
    assert store.get("reward-1").error == "no judgements"


def test_only_the_first_caller_of_a_period_is_told_so(redis_client: redis.Redis) -> None:
    store = JobStore(redis_client)
    assert store.first_in("look", "7", 10)
    assert not store.first_in("look", "7", 10)
    assert store.first_in("look", "8", 10)
