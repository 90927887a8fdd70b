"""What PPO's rollouts are climbed by: one score per response, from a reward model, single axes and a multiplier."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.axis_floor import combine_axes
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.rollouts import SampledResponse
from rlhf_core.records import TokenIds

if TYPE_CHECKING:
    from rlhf_core.learning.devices import Devices

ScoreFunction = Callable[[Sequence[TokenIds], Sequence[TokenIds]], Tensor]
"""Prompts and responses to one normalised score each, [B]."""
AxisScores = Callable[[Sequence[TokenIds], Sequence[TokenIds]], Mapping[str, Tensor]]
"""Prompts and responses to one normalised score each [B] on every axis, by its name."""


@dataclass(frozen=True, slots=True)
class Scorers:
    """Everything that looks at responses."""

    score: ScoreFunction
    axes: AxisScores | None = None
    judge: ScoreFunction | None = None
    """Scores beside, and is not climbed."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The responses of all processes, what they are climbed by [B], and the mean of each part."""

    responses: list[SampledResponse]
    scores: Tensor
    metrics: dict[str, float]


def score_responses(
    mine: Sequence[SampledResponse],
    scorers: Scorers,
    settings: PPOSettings,
    multiplier: float,
    devices: Devices | None = None,
) -> Scored:
    """Every process scores what it sampled, and knows all responses and scores afterwards.

    Raises TrainingError for scores of another shape, or that are not finite.
    """
    columns = _columns(mine, scorers)
    responses = list(mine)
    if devices:
        responses = devices.gather(responses, settings.rollouts)
        columns = {
            name: torch.tensor(devices.gather(values.tolist(), settings.rollouts)) for name, values in columns.items()
        }
    return _combine(responses, columns, settings, multiplier)


def _columns(mine: Sequence[SampledResponse], scorers: Scorers) -> dict[str, Tensor]:
    prompts, answers = [one.prompt for one in mine], [one.token_ids for one in mine]
    columns = {"score": _finite(scorers.score(prompts, answers), len(mine), "scores")}
    if scorers.axes is not None:
        for name, values in scorers.axes(prompts, answers).items():
            columns[f"axis/{name}"] = _finite(values, len(mine), f"scores of {name}")
    if scorers.judge is not None:
        columns["judge"] = _finite(scorers.judge(prompts, answers), len(mine), "scores of the judge")
    return columns


def _finite(scores: Tensor, count: int, what: str) -> Tensor:
    """One finite float32 score per response [B], on the CPU."""
    scores = scores.detach().float().cpu()
    if scores.shape != (count,):
        raise TrainingError(f"{count} responses got {what} of shape {tuple(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise TrainingError(f"{int((~scores.isfinite()).sum())} of {count} {what} are not finite")
    return scores


def _combine(
    responses: list[SampledResponse], columns: Mapping[str, Tensor], settings: PPOSettings, multiplier: float
) -> Scored:
    scores, metrics = columns["score"], dict[str, float]()
    axes = {name.removeprefix("axis/"): values for name, values in columns.items() if name.startswith("axis/")}
    if "judge" in columns:
        metrics["objective/judge_score"] = float(columns["judge"].mean())
    if axes:
        metrics |= {f"axis/{name}": float(values.mean()) for name, values in axes.items()}
        metrics["axis/overall"] = float(scores.mean())
    scores = combine_axes(scores, axes, settings.axis_weights, floor_axis=settings.floor_axis, multiplier=multiplier)
    if settings.floor_axis is not None:
        metrics["axis/multiplier"] = multiplier
        metrics["axis/violation"] = settings.floor - metrics[f"axis/{settings.floor_axis}"]
    return Scored(responses, scores, metrics)
