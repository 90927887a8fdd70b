from __future__ import annotations

from pathlib import Path

import pytest
import redis

from rlhf_core.records import Job, JobState
from rlhf_core.settings import Settings
from rlhf_core.store import keys
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from rlhf_core.store.jobs import JobStore
from rlhf_core.store.policies import PolicyStore
from tests.rlhf_core.store.records_in_store import interaction, open_interactions
from workers.stores import Stores
from workers.tasks import look, train


@pytest.fixture
def stores(redis_client: redis.Redis) -> Stores:
    return Stores(
        InteractionStore(redis_client),
        FeedbackStore(redis_client),
        PolicyStore(redis_client),
        JobStore(redis_client),
    )


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=str(tmp_path), reward_min_feedback=2, ppo_min_feedback=3)


@pytest.fixture
def rung() -> list[str]:
    return []


def rate(stores: Stores, client: redis.Redis, *names: str) -> None:
    for name in names:
        open_interactions(client, interaction(name))
        stores.feedback.rate(name, "ann", "up", now=5.0)


def end(stores: Stores, state: JobState) -> Job:
    """Run the active job's attempt to an end, without training."""
    job = stores.jobs.active()
    assert job is not None
    claimed = stores.jobs.claim(job.job_id, "one")
    assert claimed is not None
    if job.kind == "reward" and state == "done":
        stores.policies.set_reward_checkpoint("r", {}, judge_checkpoint_id="j", batch_ids=job.batch_ids)
    stores.jobs.finish(job.job_id, claimed.fence, state)
    return job


def test_too_little_feedback_starts_nothing(
    stores: Stores, settings: Settings, redis_client: redis.Redis, rung: list[str]
) -> None:
    rate(stores, redis_client, "a")
    look(stores, settings, rung.append, 100.0)
    assert (rung, stores.jobs.active(), stores.feedback.unread()) == ([], None, 1)


def test_enough_feedback_starts_a_reward_job_once(
    stores: Stores, settings: Settings, redis_client: redis.Redis, rung: list[str]
) -> None:
    rate(stores, redis_client, "a", "b")
    look(stores, settings, rung.append, 100.0)
    look(stores, settings, rung.append, 100.5)  # a duplicate in the same period
    job = stores.jobs.active()
    assert job is not None
    assert rung == [job.job_id]
    assert (job.kind, job.batch_ids, job.last_feedback_at) == ("reward", tuple(stores.feedback.batches()), 5.0)


def test_a_policy_job_waits_for_enough_feedback_and_for_a_reward_model_that_saw_all_of_it(
    stores: Stores, settings: Settings, redis_client: redis.Redis, rung: list[str]
) -> None:
    rate(stores, redis_client, "a", "b")
    look(stores, settings, rung.append, 100.0)
    end(stores, "done")
    look(stores, settings, rung.append, 102.0)
    assert stores.jobs.active() is None  # 2 of 3
    rate(stores, redis_client, "c", "d")
    look(stores, settings, rung.append, 104.0)
    assert end(stores, "done").kind == "reward"  # 4 of 3, but the newest two were not learned yet
    look(stores, settings, rung.append, 106.0)
    job = stores.jobs.active()
    assert job is not None
    assert (job.kind, len(job.batch_ids)) == ("policy", 2)
    end(stores, "failed")
    assert stores.feedback.since_policy() == 4  # a training that failed has used nothing up
    look(stores, settings, rung.append, 108.0)
    assert stores.jobs.active() is None  # but the same batches would fail again
    rate(stores, redis_client, "e", "f")
    look(stores, settings, rung.append, 110.0)
    end(stores, "done")
    look(stores, settings, rung.append, 112.0)
    job = stores.jobs.active()
    assert job is not None
    assert (job.kind, len(job.batch_ids)) == ("policy", 3)


def test_the_last_judgement_that_a_policy_needs_is_learned_from_before_the_policy_is(
    stores: Stores, redis_client: redis.Redis, rung: list[str], tmp_path: Path
) -> None:
    settings = Settings(data_dir=str(tmp_path), reward_min_feedback=3, ppo_min_feedback=4)
    rate(stores, redis_client, "a", "b", "c")
    look(stores, settings, rung.append, 100.0)
    end(stores, "done")
    rate(stores, redis_client, "d")  # 1 unread: too few for a reward model, but the fourth for a policy
    look(stores, settings, rung.append, 110.0)
    assert end(stores, "done").kind == "reward"
    rate(stores, redis_client, "e")  # more keep coming in: they do not hold the policy up
    look(stores, settings, rung.append, 120.0)
    job = stores.jobs.active()
    assert job is not None
    assert (job.kind, len(job.batch_ids), stores.feedback.unread()) == ("policy", 2, 1)


def test_a_failed_reward_job_is_not_repeated_on_the_same_feedback_and_trains_no_policy(
    stores: Stores, settings: Settings, redis_client: redis.Redis, rung: list[str]
) -> None:
    rate(stores, redis_client, "a", "b", "c")
    look(stores, settings, rung.append, 100.0)
    end(stores, "failed")
    look(stores, settings, rung.append, 102.0)
    assert stores.jobs.active() is None
    rate(stores, redis_client, "d", "e")
    look(stores, settings, rung.append, 104.0)
    job = stores.jobs.active()
    assert job is not None
    assert (job.kind, len(job.batch_ids)) == ("reward", 2)


def test_a_batch_whose_job_was_never_stored_gets_one(
    stores: Stores, settings: Settings, redis_client: redis.Redis, rung: list[str]
) -> None:
    rate(stores, redis_client, "a", "b")

    class Dies(JobStore):
        def create(self, job: Job) -> bool:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        look(stores._replace(jobs=Dies(redis_client)), settings, rung.append, 100.0)
    assert stores.feedback.unread() == 0
    look(stores, settings, rung.append, 102.0)
    assert len(rung) == 1


def test_a_job_whose_process_is_gone_is_rung_again_at_once_and_then_rarely(
    stores: Stores, settings: Settings, redis_client: redis.Redis, rung: list[str]
) -> None:
    rate(stores, redis_client, "a", "b")
    look(stores, settings, rung.append, 100.0)
    (job_id,) = rung
    assert stores.jobs.claim(job_id, "one") is not None
    look(stores, settings, rung.append, 102.0)
    assert len(rung) == 1  # it runs
    redis_client.delete(keys.lease(job_id))
    for now in (104.0, 106.0, 108.0):
        look(stores, settings, rung.append, now)
    assert rung == [job_id, job_id]


def test_ringing_for_a_job_that_runs_or_has_ended_starts_no_process(
    stores: Stores, settings: Settings, redis_client: redis.Redis, rung: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    rate(stores, redis_client, "a", "b")
    look(stores, settings, rung.append, 100.0)
    claimed = stores.jobs.claim(rung[0], "one")
    assert claimed is not None
    train(stores, settings, rung[0])
    stores.jobs.finish(rung[0], claimed.fence, "done")
    train(stores, settings, rung[0])
    assert (stores.jobs.get(rung[0]).attempts, capfd.readouterr().err) == (1, "")
