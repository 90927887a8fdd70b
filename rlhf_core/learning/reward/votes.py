"""Judgements as tensors, and their loss given scores: the same for a head solved alone and for a trunk that learns.

Thumbs come first, then pairs. A vote may count as given, as its opposite, or not at all (`weights`): that is how doubts
about its rater enter.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from rlhf_core.learning.preference_losses import (
    LEFT,
    RIGHT,
    TIE,
    normal_penalty,
    pair_logits,
    pair_losses,
    reversed_outcomes,
    thumb_logits,
    thumb_losses,
)
from rlhf_core.models.heads import NO_TIES
from rlhf_core.records import PreferencePair, RatedResponse

LEAST_OF_ONE_RATER: Final = 5
"""Judgements below which a rater has no slope, side bias and strictness of their own: one vote cannot tell them."""
LEAST_SIDE_SHARE: Final = 0.1
"""If fewer decisive choices than this share fell on one side, sides were not drawn, and their bias is not learned."""
SLOPE_STD: Final = 0.5
SIDE_STD: Final = 0.5
STRICTNESS_STD: Final = 1.0
"""Priors N(0, std^2) of a rater's log slope, side bias and strictness."""
OLDEST_WEIGHT: Final = 0.2
DAY: Final = 86400.0


Judgement = RatedResponse | PreferencePair


def judgements(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> list[Judgement]:
    """All in the order of everything here: thumbs, then pairs."""
    return [*ratings, *pairs]


class Labels(NamedTuple):
    """What N thumbs and P pairs say. Raters are numbered 0 to K - 1."""

    up: Tensor
    """[N] bool, True is a thumb up."""
    thumb_raters: Tensor
    """[N] long."""
    thumb_weights: Tensor
    """[N, 2]: of the thumb as given, and of its opposite."""
    outcomes: Tensor
    """[P] long: LEFT, RIGHT or TIE."""
    margins: Tensor
    """[P]."""
    pair_raters: Tensor
    """[P] long."""
    pair_weights: Tensor
    """[P, 2]."""

    def at(self, thumbs: Tensor, pairs: Tensor) -> Labels:
        """Those of the thumbs and of the pairs with these indices."""
        return Labels(*(part[thumbs] for part in self[:3]), *(part[pairs] for part in self[3:]))

    def weighted(self, thumbs: Tensor, pairs: Tensor) -> Labels:
        """The same with weights multiplied by `thumbs` [N] or [N, 2] and `pairs` [P] or [P, 2]."""
        thumbs, pairs = (each[:, None] if each.ndim == 1 else each for each in (thumbs, pairs))
        return self._replace(thumb_weights=self.thumb_weights * thumbs, pair_weights=self.pair_weights * pairs)

    def to(self, like: Tensor) -> Labels:
        """On the device of `like`; what is not a number or an index gets its dtype."""
        return Labels(*(part.to(like) if part.is_floating_point() else part.to(like.device) for part in self))

    def total(self, thumbs_weight: float) -> float:
        """Sum of the weights, a thumb's times `thumbs_weight`."""
        return float(self.pair_weights.sum()) + thumbs_weight * float(self.thumb_weights.sum())

    @property
    def decisive(self) -> Tensor:
        """[P] bool."""
        return self.outcomes != TIE


def label(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], half_life_days: float = 0.0) -> Labels:
    """The labels of judgements, float64. The newest weighs 1, one `half_life_days` older half; 0: all weigh alike."""
    numbers = {name: at for at, name in enumerate(rater_names(ratings, pairs))}
    newest = max((each.created_at for each in judgements(ratings, pairs)), default=0.0)

    def weights(judgements: Sequence[RatedResponse] | Sequence[PreferencePair]) -> Tensor:
        return age_weights([one.created_at for one in judgements], newest, half_life_days)

    return Labels(
        torch.tensor([each.value == "up" for each in ratings], dtype=torch.bool),
        torch.tensor([numbers[each.rater] for each in ratings], dtype=torch.long),
        weights(ratings),
        torch.tensor([outcome(each) for each in pairs], dtype=torch.long),
        torch.tensor([each.margin for each in pairs], dtype=torch.float64),
        torch.tensor([numbers[each.rater] for each in pairs], dtype=torch.long),
        weights(pairs),
    )


def rater_names(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> list[str]:
    """Pseudonyms in the order of their numbers."""
    return list(dict.fromkeys(each.rater for each in judgements(ratings, pairs)))


def outcome(pair: PreferencePair) -> int:
    if pair.tie:
        return TIE
    return LEFT if pair.chosen_side == "left" else RIGHT


class RaterEffects(nn.Module):
    """How raters differ: log slope, side bias and strictness of each who judged often enough, zero for all others.

    Each is centred on the votes it touches, so that a single rater has none and the common parameters keep the level.
    """

    slot: Tensor
    shares: Tensor

    def __init__(self, labels: Labels, raters: int) -> None:
        super().__init__()
        counts = Counter(torch.cat([labels.thumb_raters, labels.pair_raters]).tolist())
        own = [at for at in range(raters) if counts[at] >= LEAST_OF_ONE_RATER] if raters > 1 else []
        self.register_buffer("slot", torch.full((raters,), len(own), dtype=torch.long), persistent=False)
        self.slot[own] = torch.arange(len(own))
        choices = _shares(self.slot[labels.pair_raters], len(own))
        thumbs = _shares(self.slot[labels.thumb_raters], len(own))
        self.register_buffer("shares", torch.stack([choices, choices, thumbs]), persistent=False)
        self.raw = nn.Parameter(torch.zeros((3, len(own)), dtype=torch.float64))

    def forward(self) -> Tensor:
        """Log slope, side bias and strictness [3, K] of every rater."""
        # Who gave no vote of a kind has a share of zero, and no effect of that kind.
        centred = (self.raw - (self.raw * self.shares).sum(1, keepdim=True)) * (self.shares > 0)
        return functional.pad(centred, (0, 1))[:, self.slot]

    def penalty(self) -> Tensor:
        stds = self.raw.new_tensor([[SLOPE_STD], [SIDE_STD], [STRICTNESS_STD]])
        return normal_penalty(self.raw / stds)


@dataclass(frozen=True)
class Scalars:
    """What is learned beside the scores: leaves of the graph, each a scalar, and the raters' effects."""

    log_alpha: Tensor
    threshold: Tensor
    tie_u: Tensor
    """eta = softplus(u)."""
    side_bias: Tensor
    effects: RaterEffects | None = None
    tie_start: float = NO_TIES
    """Mean of u's prior."""

    @property
    def eta(self) -> Tensor:
        return functional.softplus(self.tie_u)

    def penalty(self) -> Tensor:
        """Minus the log priors: standard normal for log alpha, u (about its start) and the side bias."""
        common = torch.stack([self.log_alpha, self.tie_u - self.tie_start, self.side_bias])
        return normal_penalty(common) + (self.effects.penalty() if self.effects is not None else 0.0)

    def leaves(self, labels: Labels, *, with_threshold: bool = True) -> list[Tensor]:
        """Those that these labels can teach; the others stay as they are."""
        free = [self.threshold] if with_threshold and len(labels.up) else []
        free += [self.log_alpha] if len(labels.up) and bool(labels.decisive.any()) else []
        free += [self.tie_u] if bool((~labels.decisive).any()) else []
        free += [self.side_bias] if sides_were_drawn(labels.outcomes) else []
        return free + ([self.effects.raw] if self.effects is not None and self.effects.raw.numel() else [])


def start_scalars(labels: Labels, like: Tensor, effects: RaterEffects | None = None) -> Scalars:
    """Fresh leaves. u starts where two equally good answers are tied as often as pairs were:

    P(tie | z = 0) = tanh(eta / 2).
    """
    start = tie_start(labels)
    zero = like.new_zeros(())
    alpha, threshold, tie_u, side = (each.clone().requires_grad_() for each in (zero, zero, zero + start, zero))
    return Scalars(alpha, threshold, tie_u, side, effects, start)


def tie_start(labels: Labels) -> float:
    ties = int((~labels.decisive).sum())
    if not ties:
        return NO_TIES
    share = min(0.9, max(0.02, ties / len(labels.outcomes)))
    return math.log(math.expm1(2.0 * math.atanh(share)))


def vote_losses(
    rated: Tensor, left: Tensor, right: Tensor, labels: Labels, scalars: Scalars, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Weighted losses of thumbs [N] and of pairs [P], given the scores [N], [P] and [P] of the answers."""
    slopes, sides, strictness = scalars.effects() if scalars.effects is not None else left.new_zeros((3, 1))
    alike = scalars.effects is None
    pair_raters = torch.zeros_like(labels.pair_raters) if alike else labels.pair_raters
    thumb_raters = torch.zeros_like(labels.thumb_raters) if alike else labels.thumb_raters
    odds = thumb_logits(rated, scalars.log_alpha, scalars.threshold, strictness[thumb_raters].to(rated))
    thumbs = thumb_losses(odds, labels.up, label_smoothing), thumb_losses(odds, ~labels.up, label_smoothing)
    leaning = scalars.side_bias + sides[pair_raters].to(left)
    logits = pair_logits(left, right, slopes[pair_raters].to(left), leaning)
    choices = (
        pair_losses(logits, labels.outcomes, scalars.eta, labels.margins, label_smoothing),
        pair_losses(logits, reversed_outcomes(labels.outcomes), scalars.eta, 0.0, label_smoothing),
    )
    return (
        (torch.stack(thumbs, dim=1) * labels.thumb_weights).sum(1),
        (torch.stack(choices, dim=1) * labels.pair_weights).sum(1),
    )


def sides_were_drawn(outcomes: Tensor) -> bool:
    """Whether both sides were chosen often enough to believe that sides were drawn, and not written down in order."""
    left, right = int((outcomes == LEFT).sum()), int((outcomes == RIGHT).sum())
    return min(left, right) >= max(2.0, LEAST_SIDE_SHARE * (left + right))


def age_weights(times: Sequence[float], newest: float, half_life_days: float) -> Tensor:
    """[N, 2] float64: the weight of each judgement as given, by when it was made, and 0 for its opposite."""
    each = [_age_weight(max(0.0, newest - time), half_life_days) for time in times]
    return torch.tensor([[one, 0.0] for one in each], dtype=torch.float64).view(-1, 2)


def _age_weight(age: float, half_life_days: float) -> float:
    return max(OLDEST_WEIGHT, 0.5 ** (age / DAY / half_life_days)) if half_life_days else 1.0


def _shares(slots: Tensor, own: int) -> Tensor:
    counts = torch.bincount(slots, minlength=own + 1)[:own].double()
    return counts / counts.sum().clamp_min(1.0)
