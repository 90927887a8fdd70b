"""A bag of words with a weight each: what can be known of answers without a model, and must be beaten by one.

Words are token ids, hashed into 2^16 places; an answer scores the sum of the places that occur in it. Fitted to the
same judgements by the same likelihood as the reward model's head. Source: design notes 2.2(i).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional

from rlhf_core.learning.reward.evaluation import answers_of
from rlhf_core.learning.reward.votes import label, start_scalars, vote_losses
from rlhf_core.models.heads import PromptResponse
from rlhf_core.records import PreferencePair, RatedResponse

PLACES: Final = 1 << 16
RIDGE: Final = 1.0
STEPS: Final = 50


class WordModel:
    """A linear score over words."""

    def __init__(self, weights: Tensor) -> None:
        """`weights` [PLACES], float64."""
        self.weights = weights

    def score(self, answers: Sequence[PromptResponse]) -> Tensor:
        """Scores [B] of answers; their prompts do not matter."""
        return _score(self.weights, *_bags(answers))


def fit_words(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> WordModel:
    """The weights that minimise the judgements' loss with a ridge; the word of no judged answer weighs 0."""
    labels = label(ratings, pairs)
    words, offsets = _bags(answers_of(ratings, pairs))
    seen, compact = words.unique(return_inverse=True)
    weights = torch.zeros(len(seen), dtype=torch.float64, requires_grad=True)
    scalars = start_scalars(labels, weights.detach())
    optimizer = torch.optim.LBFGS(
        [weights, *scalars.leaves(labels)], max_iter=STEPS, history_size=20, line_search_fn="strong_wolfe"
    )
    sizes = [len(ratings), len(pairs), len(pairs)]

    def objective() -> Tensor:
        optimizer.zero_grad()
        rated, left, right = _score(weights, compact, offsets).split(sizes)
        thumbs, choices = vote_losses(rated, left, right, labels, scalars)
        loss = thumbs.sum() + choices.sum() + RIDGE * weights.square().sum() + scalars.penalty()
        loss.backward()
        return loss

    optimizer.step(objective)
    full = torch.zeros(PLACES, dtype=torch.float64)
    full[seen] = weights.detach()
    return WordModel(full)


def _bags(answers: Sequence[PromptResponse]) -> tuple[Tensor, Tensor]:
    """The distinct hashed words of each response, end to end, and where each response's begin."""
    bags = [sorted({_place(token) for token in response}) for _, response in answers]
    starts = torch.tensor([0, *(len(each) for each in bags)]).cumsum(0)[:-1]
    return torch.tensor([word for bag in bags for word in bag], dtype=torch.long), starts


def _place(token_id: int) -> int:
    """Fibonacci hashing: neighbouring ids fall far apart."""
    return (token_id * 2654435769 >> 8) % PLACES


def _score(weights: Tensor, words: Tensor, offsets: Tensor) -> Tensor:
    if not len(offsets):
        return weights.new_zeros(0)
    return functional.embedding_bag(words, weights[:, None], offsets, mode="sum").squeeze(1)
