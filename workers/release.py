"""Asks the gate about a candidate, and publishes it or not.

Publishing names the version that the gate compared with and the fence of this attempt: if either has moved on, nothing
is published.
"""

from __future__ import annotations

import time

from rlhf_core.checkpoints import checkpoint_path
from rlhf_core.errors import TrainingError
from rlhf_core.gate import evaluate_candidate
from rlhf_core.gate_rules import GateSettings
from rlhf_core.learning.reward.training import load_reward
from rlhf_core.models.adapted import load_full
from rlhf_core.preferences import select_split
from rlhf_core.records import GateReport, Job, Manifest, PolicyVersion
from rlhf_core.settings import Settings
from workers.judgements import recent_prompts, standing_judgements
from workers.stores import Stores


def release(stores: Stores, settings: Settings, job: Job, live: PolicyVersion, manifest: Manifest) -> GateReport:
    """Decide on a sealed candidate and end its job as `done` or `rejected`.

    Raises ConflictError when another policy was published meanwhile, StaleFenceError when this attempt lost its lease.
    """
    report = ask_gate(stores, settings, job, live, manifest)
    metrics = {**manifest.metrics, **report.metrics}
    if report.accepted:
        publish(stores, job, live, manifest, report, metrics)
    else:
        stores.policies.set_state(manifest.checkpoint_id, "rejected")
    stores.feedback.take_for_policy()
    stores.jobs.finish(
        job.job_id,
        job.fence,
        "done" if report.accepted else "rejected",
        checkpoint_id=manifest.checkpoint_id,
        metrics=metrics,
        gate=report,
    )
    return report


def ask_gate(stores: Stores, settings: Settings, job: Job, live: PolicyVersion, manifest: Manifest) -> GateReport:
    """Measure the candidate as it lies on disk against the live policy, on prompts that trained nothing."""
    root = settings.checkpoints_path
    reference = stores.policies.reference()
    reward = stores.policies.reward()
    if reference is None or reward is None or reward.judge_checkpoint_id is None:
        raise TrainingError("the gate needs the supervised policy and a judging reward model")
    candidate, served, supervised = (
        load_full(
            checkpoint_path(root, checkpoint_id),
            policy_version=version,
            checkpoint_id=checkpoint_id,
            max_context=settings.max_context,
        )
        for checkpoint_id, version in (
            (manifest.checkpoint_id, 0),
            (live.checkpoint_id, live.policy_version),
            (reference, 0),
        )
    )
    longest = candidate.max_context - settings.ppo_max_new_tokens
    prompts = recent_prompts(stores.interactions, "gate", longest)[: settings.gate_prompts]
    judgements = standing_judgements(stores.feedback, settings.batches_path, job.batch_ids)
    return evaluate_candidate(
        candidate,
        served,
        supervised,
        load_reward(checkpoint_path(root, reward.checkpoint_id)),
        load_reward(checkpoint_path(root, reward.judge_checkpoint_id)),
        prompts,
        *select_split(*judgements, "gate"),
        gate_settings(settings),
        now=time.time(),
    )


def gate_settings(settings: Settings) -> GateSettings:
    return GateSettings(
        win_rate=settings.gate_win_rate,
        kl_budget=settings.gate_kl_budget,
        end_rate=settings.gate_end_rate,
        max_new_tokens=settings.ppo_max_new_tokens,
        seed=settings.seed,
    )


def publish(
    stores: Stores,
    job: Job,
    live: PolicyVersion,
    manifest: Manifest,
    report: GateReport,
    metrics: dict[str, float],
) -> PolicyVersion:
    stores.policies.set_state(manifest.checkpoint_id, "accepted")
    return stores.policies.publish(
        checkpoint_id=manifest.checkpoint_id,
        weights_sha256=manifest.weights_sha256,
        actor="gate",
        reason=f"won {report.metrics['win_rate']:.0%} of held-out prompts against version {live.policy_version}",
        now=time.time(),
        expected_version=live.policy_version,
        job_id=job.job_id,
        fence=job.fence,
        gate=report,
        metrics=metrics,
    )
