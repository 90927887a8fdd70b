"""The choice of the algorithm: each trains the tiny policy from the same material, and the worker's job through it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import redis
import torch
from torch import Tensor

from rlhf_core.checkpoints import checkpoint_path, new_checkpoint_id, seal, verify
from rlhf_core.errors import SettingsError
from rlhf_core.learning.hooks import Hooks
from rlhf_core.models.load import fetch_model, load_policy, render_prompt
from rlhf_core.models.trainable import make_trainable
from rlhf_core.preferences import prompt_key, split_of
from rlhf_core.records import Interaction, Job, Message, PreferencePair, RatedResponse
from rlhf_core.settings import Settings, load_settings
from rlhf_core.store.remarks import RemarkStore
from workers.algorithms import (
    Material,
    best_of_n_settings,
    dpo_settings,
    grpo_settings,
    kto_settings,
    online_dpo_settings,
    rloo_settings,
    starts_anew,
    train_policy_by,
)
from workers.finetune import train_policy
from workers.progress import Progress
from workers.reward import train_reward
from workers.stores import Stores, open_stores
from workers.tasks import look

ALGORITHMS = ("ppo", "rloo", "grpo", "dpo", "online_dpo", "kto", "best_of_n")
SMALL = {
    "ATTUNE_REWARD_MIN_FEEDBACK": "60",
    "ATTUNE_PPO_MIN_FEEDBACK": "60",
    "ATTUNE_PPO_UPDATES": "1",
    "ATTUNE_PPO_ROLLOUTS": "16",
    "ATTUNE_PPO_MINIBATCH_SIZE": "8",
    "ATTUNE_PPO_MAX_NEW_TOKENS": "8",
    "ATTUNE_GATE_PROMPTS": "10",
    "ATTUNE_REWARD_EPOCHS": "0",
    "ATTUNE_PREFERENCE_EPOCHS": "1",
    "ATTUNE_PREFERENCE_LEARNING_RATE": "0.001",
}
QUESTIONS = [f"why is my order {at} late" for at in range(64)]
GOOD, BAD = "it waits", "no no no"


def settings_for(algorithm: str, **more: str) -> Settings:
    return load_settings({**SMALL, "ATTUNE_ALGORITHM": algorithm, **more})


def low_tokens(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.tensor([sum(token < 100 for token in response) / len(response) for response in responses])


def judged(at: int) -> tuple[RatedResponse, PreferencePair]:
    shared = {"event_id": f"e{at}", "rater": "ann", "policy_version": 1, "prompt_key": f"k{at}"}
    prompt, good, bad = (3, 20 + at, 4), (40 + at, 41, 1), (50 + at, 1)
    up = at % 2 == 0
    rating = RatedResponse(
        interaction_id=f"i{at}",
        prompt_token_ids=prompt,
        token_ids=good if up else bad,
        value="up" if up else "down",
        **shared,
    )
    pair = PreferencePair(
        comparison_id=f"c{at}", prompt_token_ids=prompt, chosen_token_ids=good, rejected_token_ids=bad,
        chosen_side="left", tie=at == 3, **shared,
    )  # fmt: skip
    return rating, pair


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_algorithm_trains_from_the_same_material(tiny_model_dir: Path, algorithm: str) -> None:
    judgements = [judged(at) for at in range(8)]
    ratings, pairs = [each[0] for each in judgements], [each[1] for each in judgements]
    trainee = make_trainable(load_policy(tiny_model_dir))
    before = {name: value.clone() for name, value in trainee.model.state_dict().items()}
    told: list[str] = []
    hooks = Hooks(progress=lambda stage, share: told.append(stage))
    material = Material(low_tokens, [each.prompt_token_ids for each in ratings], ratings, pairs)
    metrics = train_policy_by(settings_for(algorithm), trainee, material, 0, hooks)
    assert metrics["step"] == 1.0
    assert any(not torch.equal(before[name], value) for name, value in trainee.model.state_dict().items())
    assert told[-1] == "done"
    signs = {"dpo": "preference/tie_threshold", "kto": "preference/reference_point", "ppo": "value/loss"}
    sampling = {"rloo": "rollout/telling_share", "online_dpo": "rollout/pairs", "best_of_n": "objective/best_score"}
    assert {**signs, **sampling, "grpo": "rollout/telling_share"}[algorithm] in metrics


def test_every_algorithm_but_those_on_judgements_starts_from_the_live_policy() -> None:
    assert [name for name in ALGORITHMS if starts_anew(name)] == ["dpo", "kto"]


def test_what_algorithms_share_is_read_from_the_same_settings() -> None:
    settings = settings_for("rloo", ATTUNE_GROUP_SIZE="8", ATTUNE_PPO_CLIP_RANGE="0.1", ATTUNE_GATE_KL_BUDGET="3")
    sampled = (
        rloo_settings(settings),
        grpo_settings(settings),
        online_dpo_settings(settings),
        best_of_n_settings(settings),
    )
    for each in sampled:
        assert (each.updates, each.rollouts, each.max_new_tokens, each.kl_budget) == (1, 16, 8, 3.0)
    assert (sampled[0].group_size, sampled[1].group_size, sampled[3].candidates) == (8, 8, 8)
    assert (sampled[0].clip_range_high, sampled[1].clip_range_high) == (0.1, 0.28)
    assert (sampled[0].baseline, sampled[1].baseline) == ("leave_one_out", "group_normalised")
    for each in (dpo_settings(settings), kto_settings(settings)):
        assert (each.epochs, each.learning_rate, each.kl_coef) == (1, 0.001, 0.1)


def test_an_unknown_algorithm_stops_the_process_by_name() -> None:
    with pytest.raises(SettingsError, match="ATTUNE_ALGORITHM is 'reinforce'"):
        settings_for("reinforce")


@pytest.fixture
def environment(tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    for name in [name for name in os.environ if name.startswith("ATTUNE_")]:
        monkeypatch.delenv(name)
    return {**SMALL, "ATTUNE_DATA_DIR": str(tmp_path), "ATTUNE_REDIS_URL": redis_url}


@pytest.fixture
def stores(environment: dict[str, str], redis_client: redis.Redis, tiny_model_dir: Path) -> Stores:
    """Stores in which the tiny model is live, has answered every question, and every answer is rated."""
    settings = load_settings(environment)
    stores = open_stores(settings)
    fields = {"checkpoint_id": new_checkpoint_id("policy"), "kind": "policy", "created_at": 1.0}
    manifest = seal(settings.checkpoints_path, lambda d: fetch_model(str(tiny_model_dir), d), fields)
    stores.policies.publish(
        checkpoint_id=manifest.checkpoint_id, weights_sha256=manifest.weights_sha256, actor="server", reason="test",
        now=1.0, expected_version=0,
    )  # fmt: skip
    stores.policies.set_reference(manifest.checkpoint_id)
    tokenizer = load_policy(tiny_model_dir).tokenizer
    for at, question in enumerate(QUESTIONS):
        messages = (Message("user", question),)
        answer = tokenizer.encode(GOOD if at % 2 else BAD, add_special_tokens=False)
        stores.interactions.open(
            Interaction(
                interaction_id=f"i{at}", created_at=float(at), status="done", messages=messages,
                prompt_token_ids=tuple(render_prompt(tokenizer, messages)), token_ids=(*answer, 1), policy_version=1,
            )
        )  # fmt: skip
        stores.feedback.rate(f"i{at}", "ann", "up" if at % 2 else "down", now=float(at))
    return stores


def running_job(stores: Stores, settings: Settings, now: float) -> Job:
    """The job that is due, claimed as a worker claims it."""
    rung: list[str] = []
    look(stores, settings, rung.append, now)
    job = stores.jobs.claim(rung[0], "me", 60.0)
    assert job is not None
    return job


def test_reviews_of_its_prompts_teach_each_reward_model_an_axis(
    stores: Stores, environment: dict[str, str], redis_client: redis.Redis
) -> None:
    settings = load_settings(environment)
    remarks = RemarkStore(redis_client)
    for at in range(len(QUESTIONS)):
        for reviewer in ("rev", "other"):
            found = "toxicity:ok" if at % 2 else "toxicity:flag"
            remarks.make("review", f"i{at}", reviewer, reasons=[found], now=float(at))
    job = running_job(stores, settings, time.time())
    train_reward(stores, settings, job, Progress(stores.jobs, job))
    record = stores.policies.reward()
    assert record is not None
    assert record.judge_checkpoint_id is not None
    for split, checkpoint_id in (("train", record.checkpoint_id), ("judge", record.judge_checkpoint_id)):
        report = json.loads((checkpoint_path(settings.checkpoints_path, checkpoint_id) / "report.json").read_text())
        axes = {each["axis"]: each for each in report["axes"]}
        prompts = sum(split_of(prompt_key((Message("user", question),))) == split for question in QUESTIONS)
        assert axes["harmless"]["n"] == 2 * prompts
        assert axes["harmless"]["learned"] is (2 * prompts >= 30)
        assert not axes["honest"]["learned"]


def test_the_policy_job_trains_by_the_setting_and_the_gate_decides(stores: Stores, environment: dict[str, str]) -> None:
    settings = load_settings({**environment, "ATTUNE_ALGORITHM": "kto"})
    job = running_job(stores, settings, time.time())
    assert job.kind == "reward"
    train_reward(stores, settings, job, Progress(stores.jobs, job))
    job = running_job(stores, settings, time.time() + 10.0)
    assert job.kind == "policy"
    train_policy(stores, settings, job, Progress(stores.jobs, job))
    ended = stores.jobs.get(job.job_id)
    assert ended.state in ("done", "rejected")
    assert ended.gate is not None
    assert ended.checkpoint_id is not None
    candidate = verify(checkpoint_path(settings.checkpoints_path, ended.checkpoint_id))
    trained_on = sum(split_of(prompt_key((Message("user", question),))) == "train" for question in QUESTIONS)
    assert candidate.metrics["preference/ups"] + candidate.metrics["preference/downs"] <= trained_on
    assert candidate.metrics["step"] == -(-trained_on // 16)
    assert candidate.parent == candidate.reference
    assert msgspec.json.encode(candidate.metrics)
