"""People who judge by a known linear taste, as features and labels: what a head can be solved on without any model."""

from __future__ import annotations

import torch
from torch import Tensor

from rlhf_core.learning.preference_losses import LEFT, RIGHT, TIE, pair_logprobs
from rlhf_core.learning.reward.head import Features
from rlhf_core.learning.reward.votes import Labels

Group = tuple[int, int, str]
"""How many raters, how many choices each, and what they are: honest, flipped or left."""


def double(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=generator)


def labels_of(
    outcomes: Tensor, raters: Tensor | None = None, up: Tensor | None = None, thumb_raters: Tensor | None = None
) -> Labels:
    """All with full weight and no margin; without raters, one person's."""
    up = torch.zeros(0, dtype=torch.bool) if up is None else up
    full = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    return Labels(
        up,
        torch.zeros(len(up), dtype=torch.long) if thumb_raters is None else thumb_raters,
        full.repeat(len(up), 1),
        outcomes,
        torch.zeros(len(outcomes), dtype=torch.float64),
        torch.zeros_like(outcomes) if raters is None else raters,
        full.repeat(len(outcomes), 1),
    )


def simulate(groups: list[Group], seed: int, *, width: int = 10, taste: float = 0.8) -> tuple[Tensor, Features, Labels]:
    """The true weights [D], and choices by Bradley and Terry's model between answers with normal features."""
    generator = torch.Generator().manual_seed(seed)
    truth = double(width, generator=generator) * taste
    kinds = [kind for many, votes, kind in groups for _ in range(many) for _ in range(votes)]
    raters = torch.tensor(
        [rater for rater, votes in enumerate(v for many, v, _ in groups for _ in range(many)) for _ in range(votes)]
    )
    left, right = (double(len(raters), width, generator=generator) for _ in range(2))
    chance = torch.rand(len(raters), dtype=torch.float64, generator=generator)
    outcomes = torch.where(chance < torch.sigmoid((left - right) @ truth), LEFT, RIGHT)
    flipped = torch.tensor([kind == "flipped" for kind in kinds])
    always_left = torch.tensor([kind == "left" for kind in kinds])
    outcomes = torch.where(flipped, 1 - outcomes, torch.where(always_left, LEFT, outcomes))
    return truth, Features(left[:0], left, right), labels_of(outcomes, raters)


def draw_outcomes(logits: Tensor, eta: float, generator: torch.Generator) -> Tensor:
    """Outcomes [B] by Rao and Kupper's model."""
    probabilities = pair_logprobs(logits, torch.tensor(eta, dtype=torch.float64)).exp()
    drawn = torch.multinomial(probabilities, 1, generator=generator)[:, 0]
    assert {LEFT, RIGHT, TIE} >= set(drawn.tolist())
    return drawn


def agreement(weight: Tensor, truth: Tensor, seed: int = 99) -> float:
    """Share of 4000 fresh pairs that both order alike."""
    difference = double(4000, len(truth), generator=torch.Generator().manual_seed(seed))
    return float((((difference @ weight) > 0) == ((difference @ truth) > 0)).double().mean())
