"""Finds the head of a reward model while its trunk stands still: a small smooth problem, solved to its optimum.

With 60 judgements this is most of what can be learned, and it takes seconds. Moving the trunk from a head that already
fits, rather than from a random one, also distorts it less (Kumar et al. 2202.10054: first probe, then fine-tune).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.reward.votes import Labels, RaterEffects, Scalars, start_scalars, vote_losses

LBFGS_STEPS = 200


class Features(NamedTuple):
    """What the head reads of N rated responses and of both sides of P pairs, float64."""

    rated: Tensor
    """[N, D]."""
    left: Tensor
    """[P, D]."""
    right: Tensor
    """[P, D]."""


class Prepared(NamedTuple):
    """Features made ready to be solved on, again and again: standardised, then turned so that the problem is round.

    In these coordinates u no direction of the loss is steeper than another by much, and few steps suffice.
    """

    features: Features
    unmix: Tensor
    """[D, D]: v = unmix @ u are the head's weights for standardised features."""
    mean: Tensor
    """[D] of the raw features."""
    scale: Tensor
    ridge: float

    def head(self, solved: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [D] and bias, for raw features, of the solution u [D]; raw scores of all answers have mean 0."""
        weight = (self.unmix @ solved) * self.scale
        return weight, -(self.mean @ weight)


class HeadSolution(NamedTuple):
    """A linear head and the scalars beside it, float64."""

    weight: Tensor
    """[D]."""
    bias: Tensor
    scalars: Scalars


def prepare(features: Features, ridge: float) -> Prepared:
    """Standardise (mean 0 and mean square 1 over all features: `ridge` means the same for every trunk), and turn.

    The turn is the inverse Cholesky factor of the largest Hessian that the logistic losses and the ridge can have.
    Raises TrainingError for features that are not finite.
    """
    every = torch.cat(features).double()
    if not bool(every.isfinite().all()):
        raise TrainingError(f"{int((~every.isfinite()).any(1).sum())} of {len(every)} answers have no finite features")
    mean = every.mean(0)
    scale = 1.0 / (every - mean).square().mean().sqrt().clamp_min(1e-12)
    rated, left, right = ((part.double() - mean) * scale for part in features)
    rows = torch.cat([rated, left - right])
    steepest = rows.T @ rows / 4 + 2.0 * ridge * torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device)
    factor = torch.linalg.cholesky(steepest)
    identity = torch.eye(len(mean), dtype=rows.dtype, device=rows.device)
    unmix = torch.linalg.solve_triangular(factor.T, identity, upper=True)
    return Prepared(Features(rated @ unmix, left @ unmix, right @ unmix), unmix, mean, scale, ridge)


def solve_head(
    features: Features,
    labels: Labels,
    *,
    ridge: float,
    label_smoothing: float,
    thumbs_weight: float,
    effects: RaterEffects | None = None,
) -> HeadSolution:
    """The head that minimises sum_pairs L + w sum_thumbs L + ridge |v|^2 + the priors of the scalars.

    With thumbs alone alpha is 1: it would only repeat what the weights say.
    """
    prepared = prepare(features, ridge)
    solved, scalars = solve_prepared(
        prepared, labels, label_smoothing=label_smoothing, thumbs_weight=thumbs_weight, effects=effects
    )
    return HeadSolution(*prepared.head(solved), scalars)


def solve_prepared(
    prepared: Prepared,
    labels: Labels,
    *,
    label_smoothing: float,
    thumbs_weight: float,
    effects: RaterEffects | None = None,
    start: Tensor | None = None,
    steps: int = LBFGS_STEPS,
    tolerance: float = 1e-8,
) -> tuple[Tensor, Scalars]:
    """The solution u [D] of `solve_head` in prepared coordinates, and the scalars.

    The search begins at `start` [D] and ends after `steps`, or when none of them moves anything by `tolerance`.
    """
    rated, left, right = prepared.features
    solved = (rated.new_zeros(rated.shape[1]) if start is None else start.clone()).requires_grad_()
    scalars = start_scalars(labels, solved.detach(), effects)
    labels = labels.to(solved)
    optimizer = torch.optim.LBFGS(
        [solved, *scalars.leaves(labels)],
        max_iter=steps,
        tolerance_change=tolerance,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        thumbs, choices = vote_losses(rated @ solved, left @ solved, right @ solved, labels, scalars, label_smoothing)
        pull = prepared.ridge * (prepared.unmix @ solved).square().sum()
        loss = choices.sum() + thumbs_weight * thumbs.sum() + pull + scalars.penalty()
        loss.backward()
        return loss

    loss = optimizer.step(objective)
    if not (torch.isfinite(loss) and torch.isfinite(solved).all()):
        raise TrainingError(f"the reward model's head has loss {float(loss.detach())}")
    return solved.detach(), scalars
