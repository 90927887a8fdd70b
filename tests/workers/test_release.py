from __future__ import annotations

from pathlib import Path

import pytest
import redis

from rlhf_core.errors import ConflictError, StaleFenceError
from rlhf_core.models.load import load_policy
from rlhf_core.records import GateReport, Job, Manifest, PolicyVersion
from rlhf_core.settings import Secret, Settings
from tests.rlhf_core.store.records_in_store import job
from workers.algorithms import ppo_settings
from workers.finetune import finish_published, write_candidate
from workers.release import gate_settings, publish
from workers.stores import Stores, open_stores

MANIFEST = Manifest(
    checkpoint_id="policy-b",
    kind="policy",
    created_at=2.0,
    files={},
    weights_sha256="bb",
    template_sha256="",
)
REPORT = GateReport(checkpoint_id="policy-b", parent_version=1, created_at=3.0, checks=(), metrics={"win_rate": 0.75})


@pytest.fixture
def stores(redis_url: str, redis_client: redis.Redis) -> Stores:
    stores = open_stores(Settings(redis_url=Secret(redis_url)))
    stores.policies.publish(
        checkpoint_id="policy-a", weights_sha256="aa", actor="server", reason="", now=1.0, expected_version=0
    )
    stores.jobs.create(job("policy-job", "policy"))
    return stores


def claim(stores: Stores, owner: str) -> Job:
    claimed = stores.jobs.claim("policy-job", owner)
    assert claimed is not None
    return claimed


def publish_as(stores: Stores, attempt: Job, live: PolicyVersion) -> PolicyVersion:
    return publish(stores, attempt, live, MANIFEST, REPORT, {"score": 1.5})


def test_an_accepted_candidate_becomes_the_next_version_with_its_report(stores: Stores) -> None:
    published = publish_as(stores, claim(stores, "one"), stores.policies.version(1))
    assert stores.policies.live() == published
    assert (published.policy_version, published.parent_version, published.actor) == (2, 1, "gate")
    assert (published.gate, published.metrics) == (REPORT, {"score": 1.5})
    assert published.reason == "won 75% of held-out prompts against version 1"
    assert stores.policies.state("policy-b") == "live"


def test_an_attempt_that_was_taken_over_publishes_nothing(stores: Stores) -> None:
    first = claim(stores, "one")
    stores.jobs.release("policy-job", "one")
    claim(stores, "two")
    with pytest.raises(StaleFenceError):
        publish_as(stores, first, stores.policies.version(1))
    assert stores.policies.live_version() == 1


def test_a_candidate_that_was_compared_with_an_older_version_publishes_nothing(stores: Stores) -> None:
    compared_with = stores.policies.version(1)
    stores.policies.publish(
        checkpoint_id="policy-x", weights_sha256="x", actor="operator", reason="", now=2.0, expected_version=1
    )
    with pytest.raises(ConflictError):
        publish_as(stores, claim(stores, "one"), compared_with)
    assert stores.policies.live_version() == 2


def test_an_attempt_that_died_after_publishing_is_only_written_down(stores: Stores) -> None:
    published = publish_as(stores, claim(stores, "one"), stores.policies.version(1))
    stores.jobs.release("policy-job", "one")
    finish_published(stores, claim(stores, "two"), published)
    ended = stores.jobs.get("policy-job")
    assert (ended.state, ended.checkpoint_id, ended.gate) == ("done", "policy-b", REPORT)
    assert stores.policies.live_version() == 2


def test_a_candidate_differs_from_the_live_policy_in_its_weights_alone(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = load_policy(tiny_model_dir)
    policy.model.get_input_embeddings().weight.data.add_(1.0)
    write_candidate(policy, tiny_model_dir, tmp_path)
    for path in tiny_model_dir.iterdir():
        same = (tmp_path / path.name).read_bytes() == path.read_bytes()
        assert same or path.name in ("model.safetensors", "config.json"), path.name
    assert (tmp_path / "model.safetensors").read_bytes() != (tiny_model_dir / "model.safetensors").read_bytes()
    again = load_policy(tmp_path)
    assert bool((again.model.get_input_embeddings().weight == policy.model.get_input_embeddings().weight).all())


def test_settings_reach_ppo_and_the_gate() -> None:
    settings = Settings(ppo_updates=3, ppo_kl_coef=0.25, gate_kl_budget=7.0, gate_win_rate=0.6, ppo_max_new_tokens=12)
    ppo, gate = ppo_settings(settings), gate_settings(settings)
    assert (ppo.updates, ppo.kl_coef, ppo.kl_budget, ppo.max_new_tokens) == (3, 0.25, 7.0, 12)
    assert (gate.win_rate, gate.kl_budget, gate.max_new_tokens) == (0.6, 7.0, 12)
