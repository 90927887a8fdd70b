"""Finds the head of a reward model while its trunk stands still: a small convex problem, solved to its
optimum.

With 60 judgements this is most of what can be learned, and it takes seconds. Moving the trunk from a head
that already fits, rather than from a random one, also distorts it less (Kumar et al. 2202.10054, "linear
probing, then fine-tuning").
"""

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.preference_losses import log_alpha_penalty, pair_losses, thumb_losses

LBFGS_STEPS = 200


class Features(NamedTuple):
    """What the head reads of N rated responses and of P pairs."""

    rated: Tensor
    """[N, D]."""
    up: Tensor
    """[N] bool, True is a thumb up."""
    chosen: Tensor
    """[P, D]."""
    rejected: Tensor
    """[P, D]."""


class HeadSolution(NamedTuple):
    """A linear head and the thumbs' slope and threshold, float64."""

    weight: Tensor
    """[D]."""
    bias: Tensor
    log_alpha: Tensor
    threshold: Tensor


def solve_head(features: Features, *, ridge: float, label_smoothing: float, thumbs_weight: float) -> HeadSolution:
    """The head that minimises sum_pairs L + w sum_thumbs L + ridge |v|^2 + (log alpha)^2 / 2.

    v are the weights for features scaled to unit mean square, so `ridge` means the same for every trunk. Raw
    scores of the given responses have mean 0. With thumbs alone alpha is 1: it would only repeat what the
    weights say.
    """
    every = torch.cat([features.rated, features.chosen, features.rejected]).double()
    mean = every.mean(0)
    scale = 1.0 / every.square().mean().sqrt()
    rated, chosen, rejected = (
        (part.double() - mean) * scale for part in (features.rated, features.chosen, features.rejected)
    )
    weight = torch.zeros(every.shape[1], dtype=torch.float64, device=every.device, requires_grad=True)
    log_alpha, threshold = (weight.new_zeros((), requires_grad=True) for _ in range(2))
    free = [weight, threshold, log_alpha] if len(rated) and len(chosen) else [weight, threshold]
    optimizer = torch.optim.LBFGS(free, max_iter=LBFGS_STEPS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        thumbs = thumb_losses(rated @ weight, features.up, log_alpha, threshold, label_smoothing).sum()
        choices = pair_losses(chosen @ weight, rejected @ weight, label_smoothing).sum()
        loss = choices + thumbs_weight * thumbs + ridge * weight.square().sum() + log_alpha_penalty(log_alpha)
        loss.backward()
        return loss

    loss = optimizer.step(objective)
    if not (torch.isfinite(loss) and torch.isfinite(weight).all()):
        raise TrainingError(f"the reward model's head has loss {float(loss)}")
    solved = (weight * scale).detach()
    return HeadSolution(solved, -(mean @ solved), log_alpha.detach(), threshold.detach())
