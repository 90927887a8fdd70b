"""How well a reward model predicts judgements it has not seen, beside the rules it must beat."""

from collections.abc import Sequence
from itertools import islice

import msgspec
import torch
from torch import Tensor

from rlhf_core.models.heads import RewardModel
from rlhf_core.records import PreferencePair, RatedResponse
from rlhf_core.wilson import wilson_interval

SCORED_TOGETHER = 32
"""Answers per forward pass when nothing is learned."""

PromptResponse = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its response, end token included."""


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


@torch.inference_mode()
def score(model: RewardModel, prompts_and_responses: Sequence[PromptResponse]) -> Tensor:
    """Normalised scores [B] in the order given, float32, on the CPU.

    Answers of similar length share a forward pass. Raises ValueError for an answer without any token.
    """
    rows = [[*prompt, *response] for prompt, response in prompts_and_responses]
    scores = torch.zeros(len(rows))
    order = iter(sorted(range(len(rows)), key=lambda at: len(rows[at])))
    while part := list(islice(order, SCORED_TOGETHER)):
        scores[part] = model(*pad_right([rows[at] for at in part], model.device)).cpu()
    return scores


def pad_right(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Rows as `input_ids` [B, T] and `lengths` [B]. What fills up a row is never read, so any id does."""
    if not all(rows):
        raise ValueError("a row without tokens has no last token to score")
    lengths = torch.tensor([len(row) for row in rows])
    input_ids = torch.zeros((len(rows), int(lengths.max())), dtype=torch.long)
    for at, row in enumerate(rows):
        input_ids[at, : len(row)] = torch.tensor(row)
    return input_ids.to(device), lengths.to(device)


def evaluate(
    model: RewardModel, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]
) -> RewardEvaluation:
    """Predict held-out judgements: a thumb is up when P(up) > 0.5, the higher score is chosen, equal scores
    count half.
    """
    rated, chosen, rejected = score_judgements(model, ratings, pairs)
    thumbs = _thumb_hits(model, rated, ratings)
    choices = float(((chosen > rejected).double() + (chosen == rejected).double() / 2).sum())
    n = len(ratings) + len(pairs)
    low, high = wilson_interval(thumbs + choices, n)
    lengths = [len(tokens) for tokens in _responses(ratings, pairs)]
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
        length_correlation=_correlation(torch.cat([rated, chosen, rejected]), torch.tensor(lengths)),
    )


def score_judgements(
    model: RewardModel, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]
) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of rated [N], chosen [P] and rejected [P] responses, from one sweep over all of them."""
    answers: list[PromptResponse] = [(each.prompt_token_ids, each.token_ids) for each in ratings]
    answers += [(each.prompt_token_ids, each.chosen_token_ids) for each in pairs]
    answers += [(each.prompt_token_ids, each.rejected_token_ids) for each in pairs]
    rated, chosen, rejected = score(model, answers).split([len(ratings), len(pairs), len(pairs)])
    return rated, chosen, rejected


def _thumb_hits(model: RewardModel, scores: Tensor, ratings: Sequence[RatedResponse]) -> int:
    with torch.inference_mode():
        predicted_up = model.approval(scores.to(model.device)).cpu() > 0.5
    up = torch.tensor([each.value == "up" for each in ratings], dtype=torch.bool)
    return int((predicted_up == up).sum())


def _responses(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> list[tuple[int, ...]]:
    rated = [each.token_ids for each in ratings]
    return rated + [each.chosen_token_ids for each in pairs] + [each.rejected_token_ids for each in pairs]


def _share(hits: float, n: int) -> float:
    return hits / n if n else 0.0


def _correlation(left: Tensor, right: Tensor) -> float:
    """Pearson's; 0 where either side does not vary, so that it can be stored as a number."""
    left, right = left.double() - left.double().mean(), right.double() - right.double().mean()
    scale = float(left.norm() * right.norm())
    return float(left @ right) / scale if scale > 0 else 0.0
