"""Trains a candidate policy with PPO, seals it, and hands it to `release.py`.

Starts from the live policy, stays near the supervised one, climbs the reward model. Nothing is served from here.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

from rlhf_core.checkpoints import MANIFEST, checkpoint_path, new_checkpoint_id, seal
from rlhf_core.errors import TrainingError
from rlhf_core.learning.ppo import PPOSettings, ScoreFunction, train_ppo
from rlhf_core.learning.reward_model import load_reward, score
from rlhf_core.models.adapted import load_full
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.lora import ADAPTER_CONFIG
from rlhf_core.records import Job, Manifest, PolicyVersion
from rlhf_core.settings import Settings
from rlhf_core.store.policies import PolicyStore, RewardRecord, finite
from workers.judgements import recent_prompts
from workers.progress import Progress
from workers.release import release
from workers.stores import Stores

ROOM_FOR_AN_ANSWER = 16
"""Tokens that a prompt must leave free in the context to be trained on."""
TRAINED_FILES = ("config.json", "model.safetensors.index.json", ADAPTER_CONFIG, MANIFEST)
"""Besides the weights: what a candidate has of its own and not from the live policy."""


class Ingredients(NamedTuple):
    """What a policy training starts from."""

    live: PolicyVersion
    reference: str
    """Checkpoint id of the supervised policy."""
    reward: RewardRecord


def train_policy(stores: Stores, settings: Settings, job: Job, progress: Progress) -> None:
    """Run a policy job to its end. Raises TrainingError when there is nothing to train from or on."""
    start = gather(stores.policies)
    if start.live.job_id == job.job_id:
        # An earlier attempt was killed after it had published and before it could say so.
        finish_published(stores, job, start.live)
        return
    manifest = train_candidate(stores, settings, job, start, progress)
    stores.policies.set_state(manifest.checkpoint_id, "candidate")
    progress("gate", 0.9)
    release(stores, settings, job, start.live, manifest)


def gather(policies: PolicyStore) -> Ingredients:
    live, reference, reward = policies.live(), policies.reference(), policies.reward()
    if live is None or reference is None:
        raise TrainingError("there is no policy yet: the server publishes it at its first start")
    if reward is None:
        raise TrainingError("there is no reward model yet to train against")
    return Ingredients(live, reference, reward)


def finish_published(stores: Stores, job: Job, live: PolicyVersion) -> None:
    stores.feedback.take_for_policy()
    stores.jobs.finish(
        job.job_id, job.fence, "done", checkpoint_id=live.checkpoint_id, metrics=live.metrics, gate=live.gate
    )


def train_candidate(stores: Stores, settings: Settings, job: Job, start: Ingredients, progress: Progress) -> Manifest:
    """One PPO cycle, sealed as a checkpoint that nothing points at."""
    root = settings.checkpoints_path
    policy = load_full(checkpoint_path(root, start.live.checkpoint_id), max_context=settings.max_context)
    reference = load_full(checkpoint_path(root, start.reference), max_context=settings.max_context)
    prompts = recent_prompts(stores.interactions, "train", policy.max_context - ROOM_FOR_AN_ANSWER)
    result = train_ppo(
        policy,
        reference,
        score_function(checkpoint_path(root, start.reward.checkpoint_id)),
        prompts,
        ppo_settings(settings),
        settings.seed + start.live.policy_version,
        progress.part(0.05, 0.85),
    )
    metrics = finite(result.metrics[-1]) if result.metrics else {}
    return _seal(root, policy, start, job, metrics)


def score_function(directory: Path) -> ScoreFunction:
    """Scores [B] of prompts with their responses, by the reward model in `directory`."""
    model = load_reward(directory)
    return lambda prompts, responses: score(model, list(zip(prompts, responses, strict=True)))


def ppo_settings(settings: Settings) -> PPOSettings:
    return PPOSettings(
        updates=settings.ppo_updates,
        rollouts=settings.ppo_rollouts,
        epochs=settings.ppo_epochs,
        minibatch_size=settings.ppo_minibatch_size,
        learning_rate=settings.ppo_learning_rate,
        value_coef=settings.ppo_value_coef,
        kl_coef=settings.ppo_kl_coef,
        kl_budget=settings.gate_kl_budget,
        clip_range=settings.ppo_clip_range,
        value_clip_range=settings.ppo_value_clip_range,
        gamma=settings.ppo_gamma,
        gae_lambda=settings.ppo_gae_lambda,
        target_kl=settings.ppo_target_kl,
        max_new_tokens=settings.ppo_max_new_tokens,
        missing_end_penalty=settings.ppo_missing_end_penalty,
    )


def write_candidate(policy: LoadedPolicy, live_directory: Path, directory: Path) -> None:
    """The trained weights, beside the live policy's tokenizer, template and generation settings, byte for byte."""
    policy.model.save_pretrained(directory)
    for path in live_directory.iterdir():
        if path.suffix != ".safetensors" and path.name not in TRAINED_FILES:
            shutil.copyfile(path, directory / path.name)


def _seal(root: Path, policy: LoadedPolicy, start: Ingredients, job: Job, metrics: dict[str, float]) -> Manifest:
    live_directory = checkpoint_path(root, start.live.checkpoint_id)
    fields = {
        "checkpoint_id": new_checkpoint_id("policy"),
        "kind": "policy",
        "created_at": time.time(),
        "parent": start.live.checkpoint_id,
        "reference": start.reference,
        "reward_checkpoint": start.reward.checkpoint_id,
        "job_id": job.job_id,
        "fence": job.fence,
        "batch_ids": job.batch_ids,
        "metrics": metrics,
    }
    return seal(root, lambda directory: write_candidate(policy, live_directory, directory), fields)
