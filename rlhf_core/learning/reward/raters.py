"""Which votes to believe: every rater a mixture of honest, flipped and not looking, fitted to votes by EM.

An honest rater votes by the scores, a flipped one says the opposite, and one who does not look picks a side, or gives a
thumb, at a rate of their own. Source: the project's design notes 2.2(d); it generalises Crowd-BT and Dawid and Skene
1979. Scores come from folds that the vote was not in (cross-fitting): a model that has seen a vote believes it. Holds
while honest votes are a majority; beyond that it turns over with them.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor

from rlhf_core.learning.preference_losses import LEFT, TIE, pair_logits, pair_logprobs, thumb_logits
from rlhf_core.learning.reward.head import Features, Prepared, solve_prepared
from rlhf_core.learning.reward.votes import Labels, Scalars, sides_were_drawn

HONEST: Final = 0
FLIPPED: Final = 1
BIASED: Final = 2
PRIOR: Final = (8.0, 1.0, 1.0)
"""Dirichlet prior of a rater's shares of honest, flipped and biased votes, in votes."""
EM_STEPS: Final = 60
FOLDS: Final = 5
ROUNDS: Final = 4
FOLD_STEPS: Final = 60
"""L-BFGS steps of one fold's fit, which starts from the last round's."""
FOLD_TOLERANCE: Final = 1e-4
SETTLED: Final = 0.005
"""Rounds end when the responsibilities move by less than this on average."""


class VoteLikelihoods(NamedTuple):
    """What is known of V votes: who gave them, and how probable each is from an honest and from a flipped rater."""

    raters: Tensor
    """[V] long."""
    honest: Tensor
    """[V] P(the vote | honest)."""
    flipped: Tensor
    """[V] P(the vote | flipped)."""
    first: Tensor
    """[V] bool: a choice of the left side, or a thumb up."""
    thumbs: Tensor
    """[V] bool: a thumb rather than a choice; each kind has a rate of its own."""
    blind: Tensor
    """[V] P(the vote | not looking), before the side is drawn; of a tie, all of it."""
    tied: Tensor
    """[V] bool."""


class RaterMixture(NamedTuple):
    """V votes and K raters, explained."""

    responsibilities: Tensor
    """[V, 3]: how probably each vote was honest, flipped or biased."""
    shares: Tensor
    """[K, 3]: each rater's shares."""
    rates: Tensor
    """[K, 2]: how often a rater who does not look picks left, and thumb up."""


def fit_mixture(votes: VoteLikelihoods, raters: int) -> RaterMixture:
    """EM from the prior: shares (n + prior) / sum, rates (n + 1) / (n + 2)."""
    prior = votes.honest.new_tensor(PRIOR)
    shares = (prior / prior.sum()).expand(raters, 3)
    rates = votes.honest.new_full((raters, 2), 0.5)
    responsibilities = _responsibilities(votes, shares, rates)
    for _ in range(EM_STEPS):
        shares = _per_rater(votes.raters, responsibilities, raters) + prior
        shares = shares / shares.sum(1, keepdim=True)
        rates = _rates(votes, responsibilities[:, BIASED], raters)
        responsibilities = _responsibilities(votes, shares, rates)
    return RaterMixture(responsibilities, shares, rates)


def cross_fitted_mixture(
    prepared: Prepared,
    labels: Labels,
    folds: Tensor,
    raters: int,
    *,
    thumbs_weight: float,
) -> RaterMixture:
    """The mixture of the votes (thumbs, then pairs) by scores of heads that were fitted without their fold.

    `folds` [N + P] long. Each round fits the heads to the votes as last believed, scores
    every fold by the others' head, and explains the votes anew.
    """
    starts: dict[int, Tensor] = {}
    believed = labels
    before = labels.margins.new_zeros((len(folds), 3))
    for _ in range(ROUNDS):
        logprobs = labels.margins.new_zeros((len(folds), 2))
        for fold in sorted(set(folds.tolist())):
            held = folds == fold
            solved, scalars = solve_prepared(
                prepared,
                _without(believed, held),
                label_smoothing=0.0,
                thumbs_weight=thumbs_weight,
                start=starts.get(fold),
                steps=FOLD_STEPS,
                tolerance=FOLD_TOLERANCE,
            )
            starts[fold] = solved
            logprobs[held] = _vote_logprobs(prepared.features, labels, solved, scalars)[held]
        mixture = fit_mixture(_likelihoods(labels, logprobs.exp()), raters)
        if float((mixture.responsibilities - before).abs().mean()) < SETTLED:
            break
        before = mixture.responsibilities
        thumbs, pairs = before[:, :2].split([len(labels.up), len(labels.outcomes)])
        believed = believe(labels, thumbs, pairs)
    return mixture


def has_honest_majority(mixture: RaterMixture) -> bool:
    """Whether most of the votes were found honest, without which the mixture may have taken the crowd for the liars."""
    return float(mixture.responsibilities[:, HONEST].mean()) > 0.5


def believe(labels: Labels, thumbs: Tensor, pairs: Tensor) -> Labels:
    """The labels with responsibilities [N, 2] and [P, 2] of honest and flipped as weights; the rest is dropped."""
    thumb_weights, pair_weights = labels.thumb_weights[:, :1] * thumbs, labels.pair_weights[:, :1] * pairs
    return labels._replace(thumb_weights=thumb_weights, pair_weights=pair_weights)


def draw_folds(groups: Sequence[Hashable], seed: int) -> Tensor:
    """A fold of FOLDS for each vote, [V] long; votes of one group (a prompt) share theirs, folds are even in groups."""
    distinct = list(dict.fromkeys(groups))
    random.Random(f"folds {seed}").shuffle(distinct)
    of_group = {group: at % FOLDS for at, group in enumerate(distinct)}
    return torch.tensor([of_group[group] for group in groups], dtype=torch.long)


def _without(labels: Labels, held: Tensor) -> Labels:
    kept = (~held).to(labels.margins)
    thumbs, pairs = kept.split([len(labels.up), len(labels.outcomes)])
    return labels.weighted(thumbs, pairs)


@torch.no_grad()
def _vote_logprobs(features: Features, labels: Labels, weight: Tensor, scalars: Scalars) -> Tensor:
    """Log probability [V, 2] of every vote from an honest and from a flipped rater."""
    odds = thumb_logits(features.rated @ weight, scalars.log_alpha, scalars.threshold)
    lead = torch.where(labels.up, odds, -odds)
    thumbs = torch.nn.functional.logsigmoid(torch.stack([lead, -lead], dim=1))
    logits = pair_logits(features.left @ weight, features.right @ weight, 0.0, scalars.side_bias)
    logprobs = pair_logprobs(logits, scalars.eta)
    opposite = torch.where(labels.outcomes == TIE, labels.outcomes, 1 - labels.outcomes)
    pairs = torch.stack([logprobs.gather(1, each[:, None])[:, 0] for each in (labels.outcomes, opposite)], dim=1)
    return torch.cat([thumbs, pairs])


def _likelihoods(labels: Labels, probabilities: Tensor) -> VoteLikelihoods:
    tied = labels.outcomes == TIE
    # Who does not look ties as often as everyone; without drawn sides the side tells nothing, so nobody is biased.
    tie_share = tied.double().mean() if len(tied) else torch.tensor(0.0)
    drawn = float(sides_were_drawn(labels.outcomes))
    blind = torch.where(tied, tie_share, 1.0 - tie_share).to(probabilities) * drawn
    return VoteLikelihoods(
        raters=torch.cat([labels.thumb_raters, labels.pair_raters]),
        honest=probabilities[:, 0],
        flipped=probabilities[:, 1],
        first=torch.cat([labels.up, labels.outcomes == LEFT]),
        thumbs=torch.cat([torch.ones_like(labels.up), torch.zeros_like(tied)]),
        blind=torch.cat([blind.new_ones(len(labels.up)), blind]),
        tied=torch.cat([torch.zeros_like(labels.up), tied]),
    )


def _responsibilities(votes: VoteLikelihoods, shares: Tensor, rates: Tensor) -> Tensor:
    rate = rates[votes.raters, votes.thumbs.long()]
    side = torch.where(votes.first, rate, 1.0 - rate)
    biased = votes.blind * torch.where(votes.tied, torch.ones_like(side), side)
    joint = shares[votes.raters] * torch.stack([votes.honest, votes.flipped, biased], dim=1)
    return joint / joint.sum(1, keepdim=True).clamp_min(1e-300)


def _rates(votes: VoteLikelihoods, biased: Tensor, raters: int) -> Tensor:
    """(first + 1) / (all + 2) of the biased mass, per rater and kind [K, 2]; ties have no side."""
    cell = votes.raters * 2 + votes.thumbs.long()
    mass = torch.stack([biased * votes.first, biased * ~votes.tied], dim=1)
    first, all_of_it = _per_rater(cell, mass, 2 * raters).unbind(1)
    return ((first + 1.0) / (all_of_it + 2.0)).view(raters, 2)


def _per_rater(raters: Tensor, values: Tensor, count: int) -> Tensor:
    """Sums [count, ...] of the values [V, ...] of each rater."""
    return values.new_zeros((count, *values.shape[1:])).index_add(0, raters, values)
