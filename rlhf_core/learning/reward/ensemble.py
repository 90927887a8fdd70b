"""How unsure a score is: heads fitted to other people than those who happened to judge.

Each head sees raters drawn with replacement, not votes: one person's votes err together. With too few raters for that,
prompts are drawn. The trunk is shared, so the heads agree more than whole models would: a small variance is no proof.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_core.learning.reward.head import Prepared, solve_prepared
from rlhf_core.learning.reward.intervals import LEAST_RATERS
from rlhf_core.learning.reward.votes import Labels, judgements
from rlhf_core.models.heads import RewardModel
from rlhf_core.records import PreferencePair, RatedResponse


def fit_ensemble(
    model: RewardModel,
    prepared: Prepared,
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    labels: Labels,
    reference: Tensor,
    *,
    thumbs_weight: float,
    seed: int,
) -> None:
    """Fit the model's K further heads in place, each normalised on `reference` features [B, W]."""
    groups = resampling_groups(ratings, pairs)
    rng = random.Random(f"ensemble {seed}")
    distinct = list(dict.fromkeys(groups))
    for at in range(len(model.ensemble_weight)):
        times = Counter(rng.choices(distinct, k=len(distinct)))
        drawn = torch.tensor([float(times[group]) for group in groups], dtype=torch.float64)
        thumbs, choices = drawn.split([len(ratings), len(pairs)])
        resampled = labels.weighted(thumbs, choices)
        solved, _ = solve_prepared(prepared, resampled, label_smoothing=0.0, thumbs_weight=thumbs_weight)
        weight = prepared.head(solved)[0]
        scores = reference.double() @ weight
        std = scores.std(unbiased=False).clamp_min(1e-6)
        model.ensemble_weight[at] = weight / std
        model.ensemble_bias[at] = -scores.mean() / std


def resampling_groups(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> list[str]:
    """What is drawn together: a rater's judgements, or with few raters those of a prompt."""
    raters = [each.rater for each in judgements(ratings, pairs)]
    if len(set(raters)) >= LEAST_RATERS:
        return raters
    return [each.prompt_key for each in judgements(ratings, pairs)]
