"""Trains the two reward models of a reward job: one that PPO climbs, and one that judges what PPO made.

They see different prompts and start from different seeds, so that what fools one need not fool the other. The prompts
of the `gate` split train neither; both are measured on them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from rlhf_core.checkpoints import checkpoint_path, new_checkpoint_id, seal
from rlhf_core.errors import ModelError, TrainingError
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.reward.evaluation import evaluate
from rlhf_core.learning.reward.files import load_reward, save_reward
from rlhf_core.learning.reward.report import RewardReport, calibrate_reward, mean_logprobs, report_reward
from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.learning.reward.training import TrainedReward, load_trunk, train_reward_model
from rlhf_core.models.adapted import load_full
from rlhf_core.models.heads import PromptResponse, RewardModel
from rlhf_core.preferences import Split, select_split, split_of
from rlhf_core.records import Job, PreferencePair, RatedResponse, Remark
from rlhf_core.settings import Settings
from rlhf_core.store.policies import PolicyStore, finite
from workers.judgements import standing_judgements, standing_remarks
from workers.progress import Progress
from workers.stores import Stores

REPORT = "report.json"
"""In a reward checkpoint: the model beside its baselines, for people."""
SPLIT = "held out by prompt, by hash: the gate's prompts, which train nothing; raters are on both sides"
LEAST_REFERENCE_ANSWERS = 32
"""Rated answers of the supervised policy that suffice to normalise scores on."""

PartProgress = Callable[[str, float], None]
Judgements = tuple[list[RatedResponse], list[PreferencePair]]


class _Training(NamedTuple):
    """What both trainings share."""

    stores: Stores
    settings: Settings
    job: Job
    judgements: Judgements
    remarks: list[Remark]
    reference: str


def train_reward(stores: Stores, settings: Settings, job: Job, progress: Progress) -> None:
    """Run a reward job to its end. Raises TrainingError when the judgements teach nothing."""
    reference = stores.policies.reference()
    if reference is None:
        raise TrainingError("there is no supervised policy yet: the server publishes it at its first start")
    judgements = standing_judgements(stores.feedback, settings.batches_path, job.batch_ids)
    remarks = standing_remarks(stores.feedback, settings.batches_path, job.batch_ids)
    training = _Training(stores, settings, job, judgements, remarks, reference)
    climbed, metrics = _train_one(training, "train", settings.seed, progress.part(0.05, 0.5, "reward model"))
    judge, judge_metrics = _train_one(training, "judge", settings.seed + 1, progress.part(0.5, 0.95, "judge"))
    metrics |= {f"judge_{name}": value for name, value in judge_metrics.items()}
    progress("reward model", 0.98)
    stores.policies.set_reward_checkpoint(
        climbed,
        metrics,
        judge_checkpoint_id=judge,
        batch_ids=job.batch_ids,
        job_id=job.job_id,
        fence=job.fence,
    )
    stores.jobs.finish(job.job_id, job.fence, "done", checkpoint_id=climbed, metrics=metrics)


def _train_one(training: _Training, split: Split, seed: int, on_progress: PartProgress) -> tuple[str, dict[str, float]]:
    """Train on one split, measure on the gate's, seal. Returns the checkpoint id and the metrics."""
    settings, policies = training.settings, training.stores.policies
    ratings, pairs = select_split(*training.judgements, split)
    trained = train_reward_model(
        load_trunk(checkpoint_path(settings.checkpoints_path, training.reference), settings.max_context),
        ratings,
        pairs,
        _reward_settings(settings),
        seed,
        Hooks(progress=on_progress),
        devices=Devices(device="cpu"),
        reference_answers=_reference_answers(policies, ratings, training.reference),
        remarks=[each for each in training.remarks if split_of(each.prompt_key) == split],
    )
    report = _report(training, trained, (ratings, pairs), split)
    held_out = evaluate(trained.model, *select_split(*training.judgements, "gate"))
    counts = {f"train_{name}": trained.metrics[name] for name in ("n_ratings", "n_pairs")}
    metrics = finite(report.as_metrics() | trained.metrics | held_out.as_metrics() | counts)
    return _seal(training, trained, report, metrics), metrics


def _report(training: _Training, trained: TrainedReward, train: Judgements, split: Split) -> RewardReport:
    """Calibrate the model on the gate's prompts, and set it beside every baseline there.

    The temperature moves no score, so nothing that the gate asks of a candidate depends on its own judgements.
    """
    held_out = select_split(*training.judgements, "gate")
    settings = training.settings
    reference = load_full(
        checkpoint_path(settings.checkpoints_path, training.reference), max_context=settings.max_context
    )
    return report_reward(
        trained.model,
        train,
        held_out,
        calibration=calibrate_reward(trained.model, held_out[1]),
        split=SPLIT,
        fit=trained.metrics,
        axes=trained.axes,
        reference=mean_logprobs(reference.model),
        previous=_previous(training, split),
    )


def _previous(training: _Training, split: Split) -> RewardModel | None:
    """The reward model that was fitted to the same split before, if it is still there and can be read."""
    record = training.stores.policies.reward()
    if record is None:
        return None
    checkpoint_id = record.checkpoint_id if split == "train" else record.judge_checkpoint_id
    directory = checkpoint_path(training.settings.checkpoints_path, checkpoint_id) if checkpoint_id else None
    if directory is None or not directory.is_dir():
        return None
    try:
        return load_reward(directory)
    except ModelError as error:
        structlog.get_logger().warning("the report does without the previous reward model", reason=str(error))
        return None


def _seal(training: _Training, trained: TrainedReward, report: RewardReport, metrics: dict[str, float]) -> str:
    def write(directory: Path) -> None:
        save_reward(trained.model, directory)
        (directory / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")

    fields = {
        "checkpoint_id": new_checkpoint_id("reward"),
        "kind": "reward",
        "created_at": time.time(),
        "parent": training.reference,
        "reference": training.reference,
        "job_id": training.job.job_id,
        "fence": training.job.fence,
        "batch_ids": training.job.batch_ids,
        "metrics": metrics,
    }
    return seal(training.settings.checkpoints_path, write, fields).checkpoint_id


def _reward_settings(settings: Settings) -> RewardSettings:
    return RewardSettings(
        learning_rate=settings.reward_learning_rate,
        epochs=settings.reward_epochs,
        batch_size=settings.reward_batch_size,
    )


def _reference_answers(policies: PolicyStore, ratings: list[RatedResponse], reference: str) -> list[PromptResponse]:
    """Rated answers of the supervised policy, which fix the zero and the unit of scores; none if too few."""
    versions = {each.policy_version for each in policies.ledger() if each.checkpoint_id == reference}
    answers: list[PromptResponse] = [
        (each.prompt_token_ids, each.token_ids) for each in ratings if each.policy_version in versions
    ]
    return answers if len(answers) >= LEAST_REFERENCE_ANSWERS else []
