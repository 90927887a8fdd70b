"""What a fit of a reward model found besides the model: flat numbers, and a record of each rater."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch

from rlhf_core.learning.hooks import Metrics
from rlhf_core.learning.reward.head import Features
from rlhf_core.learning.reward.length import credits_of
from rlhf_core.learning.reward.raters import FLIPPED, HONEST, RaterMixture
from rlhf_core.learning.reward.votes import Labels, RaterEffects, judgements
from rlhf_core.models.heads import RewardModel
from rlhf_core.records import PreferencePair, RatedResponse


def measured(
    model: RewardModel,
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    mixture: RaterMixture | None,
) -> Metrics:
    """What the fit found, flat."""
    metrics = {
        "alpha": float(model.log_alpha.detach().exp()),
        "threshold": float(model.threshold.detach()),
        "eta": float(model.eta.detach()),
        "side_bias": float(model.side_bias.detach()),
        "length_slope_train": float(model.length_slope),
        "n_ratings": float(len(ratings)),
        "n_pairs": float(len(pairs)),
        "n_ties": float(sum(each.tie for each in pairs)),
        "raters": float(len({each.rater for each in judgements(ratings, pairs)})),
    }
    if mixture is not None:
        honest, flipped, biased = mixture.responsibilities.mean(0).tolist()
        metrics |= {"honest_share": honest, "flipped_share": flipped, "biased_share": biased}
        metrics["doubted_raters"] = float((mixture.shares[:, HONEST] < 0.5).sum())
    return metrics


@torch.no_grad()
def accuracy(model: RewardModel, read: Features, labels: Labels) -> float:
    """Share of thumbs and decisive choices that the model predicts, from the features of their answers."""
    rated, left, right = (model.score_features(part.to(model.head.weight)) for part in read)
    thumbs = (model.approval(rated).cpu() > 0.5) == labels.up
    choices = credits_of(left.cpu(), right.cpu(), labels.outcomes)[labels.decisive]
    return float(torch.cat([thumbs.double(), choices]).mean())


def rater_records(
    names: Sequence[str],
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    effects: RaterEffects,
    mixture: RaterMixture | None,
) -> dict[str, dict[str, float]]:
    counts = Counter(each.rater for each in judgements(ratings, pairs))
    slopes, sides, strictness = effects().detach().cpu().tolist()
    records = {}
    for at, name in enumerate(names):
        record = {
            "judgements": float(counts[name]),
            "slope": math.exp(slopes[at]),
            "side_bias": sides[at],
            "strictness": strictness[at],
        }
        if mixture is not None:
            record |= {"honest": float(mixture.shares[at, HONEST]), "flipped": float(mixture.shares[at, FLIPPED])}
        records[name] = record
    return records
