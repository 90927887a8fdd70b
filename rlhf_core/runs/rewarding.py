"""From files of judgements to a reward checkpoint and its report: what `attune reward` does in an open run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from rlhf_core.learning.reward.evaluation import answers_of
from rlhf_core.learning.reward.files import load_reward, save_reward
from rlhf_core.learning.reward.reference import sample_reference
from rlhf_core.learning.reward.report import (
    RewardReport,
    ScoreAnswers,
    calibrate_reward,
    mean_logprobs,
    report_reward,
    table,
)
from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.learning.reward.split import HeldOut, hold_out
from rlhf_core.learning.reward.training import TrainedReward, check_something_to_learn, train_reward_model
from rlhf_core.models.heads import RewardModel
from rlhf_core.records import Remark
from rlhf_core.runs.judgements import read_evidence
from rlhf_core.runs.model import Start, copy_beside, load_start
from rlhf_core.runs.run import Run

REPORT: Final = "report.json"
"""Beside the weights: everything that was measured."""


def fit_from_files(options: argparse.Namespace, settings: RewardSettings, run: Run) -> list[str]:
    """Read, hold out, fit, calibrate, report, save. Returns the report's lines, in the main process alone."""
    previous = load_reward(options.previous) if options.previous is not None else None
    start = load_start(options, run.devices)
    read = read_evidence(options.data, start.policy, run.tally, max_tokens=start.policy.max_context)
    split = hold_out(read.ratings, read.pairs, options.held_out, options.seed)
    check_something_to_learn(split.ratings, split.pairs)
    # Asked before the fit, because that changes the policy's trunk.
    logprobs = mean_logprobs(start.policy.model)(answers_of(split.held_ratings, split.held_pairs))
    trained = _fit(options, settings, run, start, split, [each for each in read.remarks if not split.holds_out(each)])
    report = _report(trained, split, lambda _answers: logprobs, previous)

    def write(directory: Path) -> None:
        copy_beside(start.source, directory)
        save_reward(trained.model, directory)
        (directory / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")

    run.finish(write, trained.metrics | report.as_metrics())
    return table(report) if run.devices.is_main else []


def _fit(
    options: argparse.Namespace,
    settings: RewardSettings,
    run: Run,
    start: Start,
    split: HeldOut,
    remarks: Sequence[Remark],
) -> TrainedReward:
    prompts = [prompt for prompt, _ in answers_of(split.ratings, split.pairs)]
    samples, longest = options.reference_samples, options.reference_tokens
    reference = sample_reference(start.policy, prompts, samples, max_new_tokens=longest, seed=options.seed)
    return train_reward_model(
        start.policy.model.base_model,
        split.ratings,
        split.pairs,
        settings,
        options.seed,
        run.hooks,
        devices=run.devices,
        reference_answers=reference,
        remarks=remarks,
        lora=start.lora,
    )


def _report(
    trained: TrainedReward, split: HeldOut, reference: ScoreAnswers, previous: RewardModel | None
) -> RewardReport:
    return report_reward(
        trained.model,
        (split.ratings, split.pairs),
        (split.held_ratings, split.held_pairs),
        calibration=calibrate_reward(trained.model, split.held_pairs),
        split=split.rule,
        fit=trained.metrics,
        axes=trained.axes,
        reference=reference,
        previous=previous,
    )
