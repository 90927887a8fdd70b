"""Trains a candidate policy by the algorithm of the settings, seals it, and hands it to `release.py`.

Every algorithm stays near the supervised policy, and the same gate decides. Nothing is served from here.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import NamedTuple

from rlhf_core.checkpoints import MANIFEST, checkpoint_path, new_checkpoint_id, seal
from rlhf_core.errors import TrainingError
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.ppo import ScoreFunction
from rlhf_core.learning.reward.training import load_reward, score
from rlhf_core.models.adapted import load_full
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.lora import ADAPTER_CONFIG
from rlhf_core.models.trainable import make_trainable
from rlhf_core.preferences import select_split
from rlhf_core.records import Job, Manifest, PolicyVersion
from rlhf_core.settings import Settings
from rlhf_core.store.policies import PolicyStore, RewardRecord, finite
from workers.algorithms import Material, starts_anew, train_policy_by
from workers.judgements import recent_prompts, standing_judgements
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
    """One training of the policy, sealed as a checkpoint that nothing points at."""
    root = settings.checkpoints_path
    parent = start.reference if starts_anew(settings.algorithm) else start.live.checkpoint_id
    policy = load_full(checkpoint_path(root, parent), max_context=settings.max_context)
    reference = load_full(checkpoint_path(root, start.reference), max_context=settings.max_context)
    judgements = standing_judgements(stores.feedback, settings.batches_path, job.batch_ids)
    ratings, pairs = select_split(*judgements, "train")
    material = Material(
        score_function(checkpoint_path(root, start.reward.checkpoint_id)),
        recent_prompts(stores.interactions, "train", policy.max_context - ROOM_FOR_AN_ANSWER),
        ratings,
        pairs,
    )
    trainee = make_trainable(policy, reference=reference)
    seed, hooks = settings.seed + start.live.policy_version, Hooks(progress=progress.part(0.05, 0.85))
    metrics = train_policy_by(settings, trainee, material, seed, hooks)
    return _seal(root, policy, parent, start, job, finite(metrics))


def score_function(directory: Path) -> ScoreFunction:
    """Scores [B] of prompts with their responses, by the reward model in `directory`."""
    model = load_reward(directory)
    return lambda prompts, responses: score(model, list(zip(prompts, responses, strict=True)))


def write_candidate(policy: LoadedPolicy, live_directory: Path, directory: Path) -> None:
    """The trained weights, beside the live policy's tokenizer, template and generation settings, byte for byte."""
    policy.model.save_pretrained(directory)
    for path in live_directory.iterdir():
        if path.suffix != ".safetensors" and path.name not in TRAINED_FILES:
            shutil.copyfile(path, directory / path.name)


def _seal(
    root: Path, policy: LoadedPolicy, parent: str, start: Ingredients, job: Job, metrics: dict[str, float]
) -> Manifest:
    live_directory = checkpoint_path(root, start.live.checkpoint_id)
    fields = {
        "checkpoint_id": new_checkpoint_id("policy"),
        "kind": "policy",
        "created_at": time.time(),
        "parent": parent,
        "reference": start.reference,
        "reward_checkpoint": start.reward.checkpoint_id,
        "job_id": job.job_id,
        "fence": job.fence,
        "batch_ids": job.batch_ids,
        "metrics": metrics,
    }
    return seal(root, lambda directory: write_candidate(policy, live_directory, directory), fields)
