"""What a reward model says of answers, and how well it predicts judgements it has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
import torch
from torch import Tensor

from rlhf_core.axes import AXES
from rlhf_core.errors import SettingsError
from rlhf_core.learning.reward.length import correlation
from rlhf_core.learning.reward.settings import Scoring
from rlhf_core.models.heads import AnswerBatch, PromptResponse, RewardModel
from rlhf_core.records import PreferencePair, RatedResponse
from rlhf_core.wilson import wilson_interval

READ_TOGETHER = 32
"""Answers per forward pass when nothing is learned."""


class AnswerScores(NamedTuple):
    """Everything that a reward model says of B answers, on the CPU."""

    overall: Tensor
    """[B]."""
    axes: dict[str, Tensor]
    """[B] for each axis that was learned."""
    variance: Tensor
    """[B], between the heads of the ensemble; zeros without one."""


class RewardEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of held-out judgements predicted; ties are left out, since no score predicts one by its sign.

    Without judgements accuracies are 0 and the interval is [0, 1].
    """

    accuracy: float
    """Thumbs and pairs together."""
    low: float
    """Lower bound of Wilson's 95 % interval of `accuracy`."""
    high: float
    n: int
    ratings_accuracy: float
    n_ratings: int
    pairs_accuracy: float
    n_pairs: int
    length_accuracy: float
    """Of the length rule fitted on the reward model's training judgements."""
    majority_accuracy: float
    """Of predicting what was most frequent in training: one thumb, one side."""
    length_correlation: float
    """Pearson correlation of score and response length over all answers in the judgements."""

    def as_metrics(self) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in self.__struct_fields__}


def score(model: RewardModel, answers: Sequence[PromptResponse], scoring: Scoring | None = None) -> Tensor:
    """Normalised scores [B] of prompts with responses, in the order given, float32, on the CPU.

    Raises ValueError for an empty prompt or response, SettingsError for a scoring that needs heads it has not.
    """
    return score_answers(model, answers, scoring).overall


def score_axes(model: RewardModel, answers: Sequence[PromptResponse]) -> dict[str, Tensor]:
    """Scores [B] per learned axis, each with mean 0 and standard deviation 1 on the reference answers."""
    return score_answers(model, answers).axes


@torch.no_grad()
def score_answers(
    model: RewardModel, answers: Sequence[PromptResponse], scoring: Scoring | None = None
) -> AnswerScores:
    """Overall scores, axes and doubt from one forward pass over each answer."""
    scoring = scoring or Scoring()
    if scoring.heads != "trained" and not len(model.ensemble_weight):
        raise SettingsError(f"scores by the {scoring.heads} of an ensemble need one, and this reward model has none")
    heads = len(AXES) + len(model.ensemble_weight)

    def read(batch: AnswerBatch) -> Tensor:
        features = model.features(batch)
        axes = features @ model.axis_weight.T + model.axis_bias
        ensemble = features @ model.ensemble_weight.T + model.ensemble_bias
        return torch.cat([model.score_features(features)[:, None], axes, ensemble], dim=1)

    readings = _in_groups(read, model.device, answers, (1 + heads,))
    trained, axes, ensemble = readings.split([1, len(AXES), len(model.ensemble_weight)], dim=1)
    overall = _combined(trained[:, 0], ensemble, scoring)
    if scoring.without_length:
        lengths = torch.tensor([float(len(response)) for _, response in answers])
        overall = overall - float(model.length_slope) * (lengths.log() - float(model.log_length_mean))
    return AnswerScores(
        overall,
        {axis: axes[:, at] for at, axis in enumerate(AXES) if axis in model.learned_axes},
        ensemble.var(dim=1, unbiased=False) if ensemble.numel() else torch.zeros(len(answers)),
    )


def features(model: RewardModel, answers: Sequence[PromptResponse]) -> Tensor:
    """What the heads read of each answer, [B, W], in the order given, float32, on the CPU."""
    return _in_groups(model.features, model.device, answers, (model.head.in_features,))


@torch.no_grad()
def _in_groups(
    read: Callable[[AnswerBatch], Tensor],
    device: torch.device,
    answers: Sequence[PromptResponse],
    shape: tuple[int, ...],
) -> Tensor:
    """One reading [*shape] per answer; answers of similar length share a forward pass."""
    readings = torch.zeros((len(answers), *shape))
    order = iter(sorted(range(len(answers)), key=lambda at: len(answers[at][0]) + len(answers[at][1])))
    while part := list(islice(order, READ_TOGETHER)):
        readings[part] = read(AnswerBatch.of([answers[at] for at in part], device)).cpu()
    return readings


def _combined(trained: Tensor, ensemble: Tensor, scoring: Scoring) -> Tensor:
    """One score [B] from the trained head's [B] and the ensemble's [B, K]."""
    if scoring.heads == "trained":
        return trained
    if scoring.heads == "worst":
        return ensemble.min(dim=1).values
    cost = scoring.variance_coef if scoring.heads == "cautious" else 0.0
    return ensemble.mean(dim=1) - cost * ensemble.var(dim=1, unbiased=False)


def answers_of(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> list[PromptResponse]:
    """Rated responses, then the left and then the right ones of pairs, with their prompts."""
    rated = [(each.prompt_token_ids, each.token_ids) for each in ratings]
    left, right = ([(each.prompt_token_ids, sides(each)[at]) for each in pairs] for at in range(2))
    return [*rated, *left, *right]


def sides(pair: PreferencePair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of the answer on the left and of the one on the right."""
    chosen, rejected = pair.chosen_token_ids, pair.rejected_token_ids
    return (chosen, rejected) if pair.tie or pair.chosen_side == "left" else (rejected, chosen)


def is_up(ratings: Sequence[RatedResponse]) -> Tensor:
    """[N] bool, True for a thumb up."""
    return torch.tensor([each.value == "up" for each in ratings], dtype=torch.bool)


def evaluate(model: RewardModel, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> RewardEvaluation:
    """Predict held-out judgements: a thumb is up when P(up) > 0.5, the higher score is chosen, equals count half."""
    pairs = [each for each in pairs if not each.tie]
    answers = [*answers_of(ratings, []), *_chosen_and_rejected(pairs)]
    scores = score(model, answers)
    rated, chosen, rejected = scores.split([len(ratings), len(pairs), len(pairs)])
    thumbs = _thumb_hits(model, rated, ratings)
    choices = float(((chosen > rejected).double() + (chosen == rejected).double() / 2).sum())
    n = len(ratings) + len(pairs)
    low, high = wilson_interval(thumbs + choices, n)
    return RewardEvaluation(
        accuracy=_share(thumbs + choices, n),
        low=low,
        high=high,
        n=n,
        ratings_accuracy=_share(thumbs, len(ratings)),
        n_ratings=len(ratings),
        pairs_accuracy=_share(choices, len(pairs)),
        n_pairs=len(pairs),
        length_accuracy=_share(model.baselines.length_hits(ratings, pairs), n),
        majority_accuracy=_share(model.baselines.majority_hits(ratings, pairs), n),
        length_correlation=correlation(scores, torch.tensor([len(response) for _, response in answers])),
    )


def _chosen_and_rejected(pairs: Sequence[PreferencePair]) -> list[PromptResponse]:
    chosen: list[PromptResponse] = [(each.prompt_token_ids, each.chosen_token_ids) for each in pairs]
    return [*chosen, *((each.prompt_token_ids, each.rejected_token_ids) for each in pairs)]


def _thumb_hits(model: RewardModel, scores: Tensor, ratings: Sequence[RatedResponse]) -> int:
    with torch.no_grad():
        predicted_up = model.approval(scores.to(model.device)).cpu() > 0.5
    return int((predicted_up == is_up(ratings)).sum())


def _share(hits: float, n: int) -> float:
    return hits / n if n else 0.0
