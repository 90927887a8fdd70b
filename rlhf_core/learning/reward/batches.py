"""Judgements in batches of similar length, a row each: both answers of a pair share the prompt that they answer.

A shared prompt is computed once. That is exact where a model takes positions and a mask from outside, as most do;
`share_prompts` asks the model at hand.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch

from rlhf_core.errors import ModelError
from rlhf_core.learning.reward.evaluation import sides
from rlhf_core.learning.reward.votes import Labels
from rlhf_core.models.heads import AnswerBatch, AnswerGroup, RewardModel
from rlhf_core.records import PreferencePair, RatedResponse

WINDOW_BATCHES: Final = 4
"""Batches are cut from shuffled windows of this many, sorted by length: little padding, random order."""
SAME: Final = 1e-3
"""Largest difference of a reading, against the largest reading, that the order of a sum may make."""


class VoteBatch(NamedTuple):
    """N thumbs and P pairs with their answers."""

    answers: AnswerBatch
    """Rated ones, then left and right of the first pair, of the second, and so on."""
    labels: Labels


class VoteData(NamedTuple):
    """All judgements of a fit: thumbs, then pairs, numbered through."""

    ratings: Sequence[RatedResponse]
    pairs: Sequence[PreferencePair]
    labels: Labels

    def __len__(self) -> int:
        return len(self.ratings) + len(self.pairs)

    def length(self, index: int) -> int:
        """Tokens of a judgement's row, its prompt once."""
        return len(self._group(index)[0]) + sum(map(len, self._group(index)[1]))

    def batch(self, indices: Sequence[int], device: torch.device, *, shared_prompts: bool) -> VoteBatch:
        """The judgements with these numbers, thumbs first."""
        thumbs = sorted(at for at in indices if at < len(self.ratings))
        pairs = sorted(at for at in indices if at >= len(self.ratings))
        groups = [self._group(at) for at in (*thumbs, *pairs)]
        if not shared_prompts:
            groups = [(prompt, (response,)) for prompt, responses in groups for response in responses]
        return VoteBatch(AnswerBatch.of_groups(groups, device), self.labels_of(indices))

    def labels_of(self, indices: Sequence[int]) -> Labels:
        """Labels in the order of `batch`, on the CPU."""
        n = len(self.ratings)
        thumbs = torch.tensor(sorted(at for at in indices if at < n), dtype=torch.long)
        pairs = torch.tensor(sorted(at - n for at in indices if at >= n), dtype=torch.long)
        return self.labels.at(thumbs, pairs)

    def _group(self, index: int) -> AnswerGroup:
        if index < len(self.ratings):
            rating = self.ratings[index]
            return rating.prompt_token_ids, (rating.token_ids,)
        pair = self.pairs[index - len(self.ratings)]
        return pair.prompt_token_ids, sides(pair)


def plan_batches(data: VoteData, batch_size: int, epochs: int, shuffle: random.Random) -> list[list[int]]:
    """The judgements' numbers in each batch of all epochs, drawn at once: a resumed fit sees the same."""
    batches = []
    for _ in range(epochs):
        epoch = [
            batch
            for window in _cut(shuffle.sample(range(len(data)), len(data)), WINDOW_BATCHES * batch_size)
            for batch in _cut(sorted(window, key=data.length), batch_size)
        ]
        shuffle.shuffle(epoch)
        batches += epoch
    return batches


@torch.no_grad()
def share_prompts(model: RewardModel, data: VoteData) -> bool:
    """Whether the two answers of a pair read the same in one row as in two. Asks with the longest pair, which shows
    the most of what a model makes of positions."""
    if not data.pairs:
        return False
    longest = [max(range(len(data.ratings), len(data)), key=data.length)]
    try:
        together, apart = (
            model.features(data.batch(longest, model.device, shared_prompts=shared).answers) for shared in (True, False)
        )
    except (TypeError, ValueError, RuntimeError, ModelError):  # what a model raises that takes no such positions
        return False
    return float((together - apart).abs().max()) <= SAME * float(apart.abs().max())


def _cut(items: Sequence[int], size: int) -> Iterator[list[int]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
