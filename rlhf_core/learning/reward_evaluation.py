"""How well a reward model predicts judgements it has not seen, beside the rules it must beat."""

from collections.abc import Callable, Sequence
from itertools import islice

import msgspec
import torch
from torch import Tensor

from rlhf_core.models.heads import AnswerBatch, PromptResponse, RewardModel
from rlhf_core.records import PreferencePair, RatedResponse
from rlhf_core.wilson import wilson_interval

READ_TOGETHER = 32
"""Answers per forward pass when nothing is learned."""


class RewardEvaluation(msgspec.Struct, frozen=True, kw_only=True):
    """Shares of held-out judgements predicted. Without judgements accuracies are 0 and the interval is [0,
    1].
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


def score(model: RewardModel, answers: Sequence[PromptResponse]) -> Tensor:
    """Normalised scores [B] of prompts with responses, in the order given, float32, on the CPU.

    Raises ValueError for an empty prompt or response.
    """
    return _in_groups(model.forward, model.device, answers, ())


def features(model: RewardModel, answers: Sequence[PromptResponse]) -> Tensor:
    """What the head reads of each answer, [B, 2 D], in the order given, float32, on the CPU."""
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


def answers_of(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> list[PromptResponse]:
    """Rated, chosen and rejected responses with their prompts, in that order."""
    rated = [(each.prompt_token_ids, each.token_ids) for each in ratings]
    chosen = [(each.prompt_token_ids, each.chosen_token_ids) for each in pairs]
    return [*rated, *chosen, *((each.prompt_token_ids, each.rejected_token_ids) for each in pairs)]


def is_up(ratings: Sequence[RatedResponse]) -> Tensor:
    """[N] bool, True for a thumb up."""
    return torch.tensor([each.value == "up" for each in ratings], dtype=torch.bool)


def evaluate(model: RewardModel, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> RewardEvaluation:
    """Predict held-out judgements: a thumb is up when P(up) > 0.5, the higher score is chosen, equal scores
    count half.
    """
    answers = answers_of(ratings, pairs)
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
        length_correlation=_correlation(scores, torch.tensor([len(response) for _, response in answers])),
    )


def _thumb_hits(model: RewardModel, scores: Tensor, ratings: Sequence[RatedResponse]) -> int:
    with torch.no_grad():
        predicted_up = model.approval(scores.to(model.device)).cpu() > 0.5
    return int((predicted_up == is_up(ratings)).sum())


def _share(hits: float, n: int) -> float:
    return hits / n if n else 0.0


def _correlation(left: Tensor, right: Tensor) -> float:
    """Pearson's; 0 where either side does not vary, so that it can be stored as a number."""
    left, right = left.double() - left.double().mean(), right.double() - right.double().mean()
    scale = float(left.norm() * right.norm())
    return float(left @ right) / scale if scale > 0 else 0.0
