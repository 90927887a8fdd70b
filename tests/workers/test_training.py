"""Real trainings of the tiny model: in child processes, and through a real worker and beat."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import redis

from rlhf_core.checkpoints import checkpoint_path, new_checkpoint_id, seal, verify
from rlhf_core.errors import StaleFenceError, StoreUnavailableError
from rlhf_core.models.load import fetch_model, load_policy, render_prompt
from rlhf_core.records import Interaction, Job, Message
from rlhf_core.settings import Settings, load_settings
from rlhf_core.store.connection import connect
from rlhf_core.store.jobs import JobStore
from tests.running import ROOT, stop
from workers.progress import Progress
from workers.stores import Stores, open_stores
from workers.tasks import look, train

SMALL = {
    "ATTUNE_REWARD_MIN_FEEDBACK": "60",
    "ATTUNE_PPO_MIN_FEEDBACK": "60",
    "ATTUNE_PPO_UPDATES": "1",
    "ATTUNE_PPO_ROLLOUTS": "8",
    "ATTUNE_PPO_MINIBATCH_SIZE": "8",
    "ATTUNE_PPO_MAX_NEW_TOKENS": "8",
    "ATTUNE_GATE_PROMPTS": "10",
    "ATTUNE_TRAIN_THREADS": "1",
}
QUESTIONS = [f"why is my order {at} late" for at in range(64)]
GOOD, BAD = "it waits", "no no no"


@pytest.fixture
def environment(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """This process's environment, and that of its children, with settings of tiny trainings."""
    for name in [name for name in os.environ if name.startswith("ATTUNE_")]:
        monkeypatch.delenv(name)
    for name, value in {**SMALL, "ATTUNE_DATA_DIR": str(tmp_path), "ATTUNE_REDIS_URL": redis_url}.items():
        monkeypatch.setenv(name, value)
    return dict(os.environ)


@pytest.fixture
def settings(environment: dict[str, str]) -> Settings:
    return load_settings(environment)


@pytest.fixture
def stores(settings: Settings, redis_client: redis.Redis, tiny_model_dir: Path) -> Stores:
    """Stores in which the tiny model is live and has answered every question."""
    stores = open_stores(settings)
    fields = {"checkpoint_id": new_checkpoint_id("policy"), "kind": "policy", "created_at": 1.0}
    manifest = seal(settings.checkpoints_path, lambda d: fetch_model(str(tiny_model_dir), d), fields)
    stores.policies.publish(
        checkpoint_id=manifest.checkpoint_id,
        weights_sha256=manifest.weights_sha256,
        actor="server",
        reason="test",
        now=1.0,
        expected_version=0,
    )
    stores.policies.set_reference(manifest.checkpoint_id)
    _answer_all(stores, tiny_model_dir)
    return stores


def _answer_all(stores: Stores, directory: Path) -> None:
    tokenizer = load_policy(directory).tokenizer
    for at, question in enumerate(QUESTIONS):
        messages = (Message("user", question),)
        answer = tokenizer.encode(GOOD if at % 2 else BAD, add_special_tokens=False)
        stores.interactions.open(
            Interaction(
                interaction_id=f"i{at}",
                created_at=float(at),
                status="done",
                messages=messages,
                prompt_token_ids=tuple(render_prompt(tokenizer, messages)),
                token_ids=(*answer, 1),
                policy_version=1,
            )
        )


def rate_all(stores: Stores) -> None:
    for at in range(len(QUESTIONS)):
        stores.feedback.rate(f"i{at}", "ann", "up" if at % 2 else "down", now=float(at))


def ring_for_reward_job(stores: Stores, settings: Settings) -> str:
    rung: list[str] = []
    look(stores, settings, rung.append, time.time())
    return rung[0]


def wait_for(what: str, true: Callable[[], bool], log: Path | None = None, seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        said = log.read_text()[-4000:] if log else ""
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds} s\n{said}"
        time.sleep(0.1)


def child_of_this_process(job_id: str) -> int | None:
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = status.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"workers.train_job" in words and job_id.encode() in words:
            return int(status.parent.name)
    return None


@contextmanager
def celery(name: str, *arguments: str, environment: dict[str, str], log: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "celery", "-A", "workers.app", name, "--loglevel", "INFO", *arguments]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environment, "REMAP_SIGTERM": "SIGQUIT"},
            stdout=output,
            stderr=output,
        )
    try:
        yield
    finally:
        stop(process, 30.0)


def last(stores: Stores, kind: str) -> Job | None:
    return next((job for job in stores.jobs.recent(10) if job.kind == kind), None)


def ended(job: Job | None) -> bool:
    return job is not None and job.state not in ("queued", "running")


def test_worker_and_beat_turn_thumbs_into_reward_models_and_a_decided_candidate(
    stores: Stores, settings: Settings, environment: dict[str, str], tmp_path: Path
) -> None:
    log = tmp_path / "celery.log"
    worker = ("worker", "--pool", "prefork", "--concurrency", "2", "--queues", "ingest,train")
    with ExitStack() as processes:
        processes.enter_context(celery(*worker, environment=environment, log=log))
        processes.enter_context(celery("beat", "--pidfile=", environment=environment, log=log))
        rate_all(stores)
        wait_for("the policy job", lambda: ended(last(stores, "policy")), log)
    reward_job, policy_job = last(stores, "reward"), last(stores, "policy")
    assert reward_job is not None
    assert policy_job is not None
    assert (reward_job.state, reward_job.error) == ("done", None)
    reward = stores.policies.reward()
    assert reward is not None
    for checkpoint_id in (reward.checkpoint_id, reward.judge_checkpoint_id):
        assert checkpoint_id is not None
        assert verify(checkpoint_path(settings.checkpoints_path, checkpoint_id)).batch_ids == reward_job.batch_ids
    assert reward.metrics["n"] + reward.metrics["n_ratings"] > 0
    assert policy_job.state in ("done", "rejected"), policy_job.error
    assert policy_job.gate is not None
    assert policy_job.checkpoint_id is not None
    candidate = verify(checkpoint_path(settings.checkpoints_path, policy_job.checkpoint_id))
    live = stores.policies.version(1)
    base = verify(checkpoint_path(settings.checkpoints_path, live.checkpoint_id))
    assert candidate.parent == live.checkpoint_id
    assert candidate.weights_sha256 != base.weights_sha256
    assert candidate.template_sha256 == base.template_sha256
    assert {n: candidate.files[n] for n in ("tokenizer.json",)} == {n: base.files[n] for n in ("tokenizer.json",)}
    assert stores.policies.live_version() == (2 if policy_job.state == "done" else 1)
    assert stores.policies.state(candidate.checkpoint_id) == ("live" if policy_job.state == "done" else "rejected")
    assert stores.jobs.active() is None


def test_a_killed_training_is_tried_again_and_its_late_writes_are_refused(stores: Stores, settings: Settings) -> None:
    rate_all(stores)
    job_id = ring_for_reward_job(stores, settings)
    attempt = threading.Thread(target=train, args=(stores, settings, job_id))
    attempt.start()
    wait_for("the training", lambda: stores.jobs.get(job_id).stage == "starting")
    child = child_of_this_process(job_id)
    assert child is not None
    os.kill(child, signal.SIGKILL)
    attempt.join(60)
    assert stores.jobs.lapsed() is not None
    rung: list[str] = []
    look(stores, settings, rung.append, time.time() + 2)
    assert rung == [job_id]
    train(stores, settings, job_id)
    job = stores.jobs.get(job_id)
    assert (job.state, job.attempts, job.fence, job.error) == ("done", 2, 2, None)
    with pytest.raises(StaleFenceError):
        stores.jobs.progress(job_id, 1, "reward model", 0.5)  # what the first attempt would still say


def test_a_store_that_is_away_loses_a_report_and_not_the_training() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        jobs = JobStore(connect(f"redis://127.0.0.1:{taken.getsockname()[1]}"))
        with pytest.raises(StoreUnavailableError):
            jobs.progress("job", 1, "rollouts 1/8", 0.1)
        job = Job(job_id="job", kind="policy", created_at=0.0, batch_ids=(), fence=1)
        Progress(jobs, job)("rollouts 1/8", 0.1)


def test_a_training_that_is_stopped_gives_its_lease_back_and_loses_no_attempt(
    stores: Stores, settings: Settings
) -> None:
    rate_all(stores)
    job_id = ring_for_reward_job(stores, settings)
    attempt = threading.Thread(target=train, args=(stores, settings, job_id))
    attempt.start()
    wait_for("the training", lambda: stores.jobs.get(job_id).stage == "starting")
    child = child_of_this_process(job_id)
    assert child is not None
    os.kill(child, signal.SIGTERM)
    attempt.join(60)
    job = stores.jobs.get(job_id)
    assert (job.state, job.attempts) == ("running", 0)
    assert stores.jobs.lapsed() is not None
    assert not list(settings.checkpoints_path.glob(".*.tmp"))


def test_feedback_that_teaches_nothing_fails_the_job_at_once_and_stays(stores: Stores, settings: Settings) -> None:
    for at in range(len(QUESTIONS)):
        stores.feedback.rate(f"i{at}", "ann", "up", now=1.0)
    job_id = ring_for_reward_job(stores, settings)
    train(stores, settings, job_id)
    job = stores.jobs.get(job_id)
    assert (job.state, job.attempts) == ("failed", 1)
    assert job.error is not None
    assert "thumbs are up" in job.error
    assert stores.jobs.active() is None
    assert stores.feedback.since_policy() == len(QUESTIONS)
    assert stores.policies.reward() is None
