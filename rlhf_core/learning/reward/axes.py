"""Heads for helpful, honest and harmless beside the overall one, learned from the reasons that people ticked, and from
what they reported or found in a review.

Each is a small logistic problem on the same features as the overall head. Its probabilities are calibrated on folds
that it was not fitted to. Below a number of judgements nothing is learned, and the report says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor

from rlhf_core.axes import AXES, LEAST_JUDGEMENTS, Axis, evidence, orders, remarks_say, thumb_says
from rlhf_core.learning.preference_losses import LEFT, RIGHT
from rlhf_core.learning.reward.calibration import calibration_error, fit_temperature
from rlhf_core.learning.reward.head import Features, HeadSolution, solve_head
from rlhf_core.learning.reward.intervals import area_under_curve
from rlhf_core.learning.reward.raters import draw_folds
from rlhf_core.learning.reward.votes import Labels, age_weights, outcome
from rlhf_core.models.heads import RewardModel
from rlhf_core.records import PreferencePair, RatedResponse, Remark

LEAST_OF_A_KIND: Final = 5
"""Answers called good, and called bad, without which an axis has nothing to tell apart."""


class AxisReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of one axis. Measured on folds that the head was not fitted to."""

    axis: str
    learned: bool
    n: int
    """Judgements with a reason of this axis."""
    said: str
    """In a sentence."""
    auc: float = 0.5
    """Probability that an answer called good scores above one called bad."""
    ece: float = 0.0
    temperature: float = 1.0


class Said(NamedTuple):
    """All judgements that may speak of an axis."""

    ratings: Sequence[RatedResponse]
    pairs: Sequence[PreferencePair]
    labels: Labels
    """Of the ratings and pairs: they weigh each by how much its rater is believed."""
    remarks: Sequence[Remark] = ()
    half_life_days: float = 0.0
    """By which remarks grow old, as thumbs do."""

    @property
    def answers(self) -> list[RatedResponse | Remark]:
        """Judgements of single answers: thumbs, then remarks."""
        return [*self.ratings, *self.remarks]

    def evidence(self, axis: Axis) -> int:
        return evidence(self.ratings, self.pairs, self.remarks, axis)


class _AxisVotes(NamedTuple):
    """The judgements that speak of an axis: their numbers, among those of single answers and among the pairs, and what
    they say."""

    answers: Tensor
    pairs: Tensor
    labels: Labels


def fit_axes(
    model: RewardModel, features: Features, said: Said, reference: Tensor, *, ridge: float
) -> list[AxisReport]:
    """Fit the head of each axis that there is enough said of, in place, normalised on `reference` features [B, W].

    `features.rated` are of the answers in the order of `said.answers`.
    """
    return [_fit_axis(model, at, axis, features, said, reference, ridge) for at, axis in enumerate(AXES)]


def _fit_axis(
    model: RewardModel, at: int, axis: Axis, features: Features, said: Said, reference: Tensor, ridge: float
) -> AxisReport:
    n, votes = said.evidence(axis), _votes(axis, said)
    if n < LEAST_JUDGEMENTS or _fewest(votes) < LEAST_OF_A_KIND:
        return not_learned(axis, said)
    spoken = Features(features.rated[votes.answers], features.left[votes.pairs], features.right[votes.pairs])
    answers = said.answers
    prompts = [*(answers[each].prompt_key for each in votes.answers)]
    prompts += [said.pairs[each].prompt_key for each in votes.pairs]
    solution = _solve(spoken, votes.labels, ridge)
    held = _held_out_logits(spoken, votes.labels, draw_folds(prompts, at), ridge)
    good = torch.cat([votes.labels.up, votes.labels.outcomes == LEFT])
    temperature = fit_temperature(held, torch.where(good, LEFT, RIGHT), held.new_zeros(()))
    _install(model, at, solution, reference, temperature)
    report = AxisReport(
        axis=axis,
        learned=True,
        n=n,
        said="",
        auc=area_under_curve(held, good),
        ece=calibration_error(torch.sigmoid(held / temperature), good)[0],
        temperature=temperature,
    )
    words = f"{axis}: {n} judgements; good answers score above bad ones in {report.auc:.1%}, ece {report.ece:.3f}"
    return msgspec.structs.replace(report, said=words)


def not_learned(axis: Axis, said: Said) -> AxisReport:
    """The report of an axis that there is too little said of."""
    n, few = said.evidence(axis), _fewest(_votes(axis, said))
    return AxisReport(axis=axis, learned=False, n=n, said=_too_little(axis, n, few))


def _fewest(votes: _AxisVotes) -> int:
    """Judgements of the rarer kind, good or bad; a choice is one of both."""
    return min(int(votes.labels.up.sum()), int((~votes.labels.up).sum())) + len(votes.pairs)


def _votes(axis: Axis, said: Said) -> _AxisVotes:
    verdicts = [thumb_says(each, axis) for each in said.ratings]
    verdicts += remarks_say(said.remarks, axis)
    spoken = {at: good for at, good in enumerate(verdicts) if good is not None}
    ordered = [at for at, each in enumerate(said.pairs) if orders(each, axis)]
    answers = torch.tensor(list(spoken), dtype=torch.long)
    choices = torch.tensor(ordered, dtype=torch.long)
    chosen = _with_remarks(said).at(answers, choices)
    # A flipped vote says nothing of its reasons: only what is believed as given counts.
    as_given = chosen.margins.new_tensor([1.0, 0.0])
    return _AxisVotes(
        answers,
        choices,
        chosen._replace(
            up=torch.tensor(list(spoken.values()), dtype=torch.bool),
            outcomes=torch.tensor([outcome(said.pairs[at]) for at in ordered], dtype=torch.long),
            thumb_weights=chosen.thumb_weights * as_given,
            pair_weights=chosen.pair_weights * as_given,
        ),
    )


def _with_remarks(said: Said) -> Labels:
    """Behind the thumbs, remarks: each believed as it stands, for no vote tells who makes them well."""
    labels, remarks = said.labels, len(said.remarks)
    newest = max((each.created_at for each in [*said.answers, *said.pairs]), default=0.0)
    weights = age_weights([each.created_at for each in said.remarks], newest, said.half_life_days)
    return labels._replace(
        up=torch.cat([labels.up, labels.up.new_zeros(remarks)]),
        thumb_raters=torch.cat([labels.thumb_raters, labels.thumb_raters.new_zeros(remarks)]),
        thumb_weights=torch.cat([labels.thumb_weights, weights.to(labels.thumb_weights)]),
    )


def _solve(features: Features, labels: Labels, ridge: float) -> HeadSolution:
    return solve_head(features, labels, ridge=ridge, label_smoothing=0.0, thumbs_weight=1.0)


def _held_out_logits(features: Features, labels: Labels, folds: Tensor, ridge: float) -> Tensor:
    """Log odds of `good` for every thumb, and of left for every pair, by heads that were not fitted to its fold."""
    logits = torch.zeros(len(folds), dtype=torch.float64)
    for fold in sorted(set(folds.tolist())):
        held = folds == fold
        thumbs, pairs = (~held).double().split([len(labels.up), len(labels.outcomes)])
        solution = _solve(features, labels.weighted(thumbs, pairs), ridge)
        rated, left, right = (part.double() @ solution.weight + solution.bias for part in features)
        odds = solution.scalars.log_alpha.exp() * rated - solution.scalars.threshold
        logits[held] = torch.cat([odds, left - right]).detach()[held]
    return logits


@torch.no_grad()
def _install(model: RewardModel, at: int, solution: HeadSolution, reference: Tensor, temperature: float) -> None:
    scores = reference.double() @ solution.weight + solution.bias
    mean, std = scores.mean(), scores.std(unbiased=False).clamp_min(1e-6)
    model.axis_weight[at] = solution.weight / std
    model.axis_bias[at] = (solution.bias - mean) / std
    alpha = solution.scalars.log_alpha.exp()
    model.axis_scale[at] = alpha * std / temperature
    model.axis_offset[at] = (alpha * mean - solution.scalars.threshold) / temperature
    model.axis_learned[at] = True


def _too_little(axis: str, n: int, few: int) -> str:
    if n < LEAST_JUDGEMENTS:
        return f"{axis}: not enough data, {n} judgements say why in its terms and {LEAST_JUDGEMENTS} are needed"
    return f"{axis}: not enough data, only {few} of {n} judgements tell a good answer from a bad one"
