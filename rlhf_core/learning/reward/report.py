"""A reward model beside every rule that knows less, on judgements it has not seen, with intervals.

Accuracy is of decisive choices; ties are measured apart. A rule without a model that does as well is named in a
sentence: what was learned then is that rule. Source: design notes 2.2(e), (f), (i).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.preference_losses import TIE
from rlhf_core.learning.reward.axes import AxisReport
from rlhf_core.learning.reward.calibration import Calibration, calibrate
from rlhf_core.learning.reward.evaluation import answers_of, is_up, score
from rlhf_core.learning.reward.intervals import NOTHING, Estimate, area_under_curve, resampled, share_interval
from rlhf_core.learning.reward.length import LengthReport, ScoredPairs, credits_of, length_report
from rlhf_core.learning.reward.votes import outcome
from rlhf_core.learning.reward.words import fit_words
from rlhf_core.learning.rollouts import plan_microbatches
from rlhf_core.models.heads import PromptResponse, RewardModel
from rlhf_core.records import PreferencePair, RatedResponse

ScoreAnswers = Callable[[Sequence[PromptResponse]], Tensor]
"""Scores [B] of answers, on the CPU."""
TOKENS_TOGETHER: Final = 4096
Judgements = tuple[Sequence[RatedResponse], Sequence[PreferencePair]]


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """One way to judge answers, on the held-out judgements."""

    name: str
    choices: Estimate
    """Share of decisive choices predicted."""
    thumbs: Estimate
    """Probability that an upvoted answer scores above a downvoted one."""


class RewardReport(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured about one reward model."""

    split: str
    """How the judgements were held out, in words."""
    model: Measured
    baselines: tuple[Measured, ...]
    tie_auc: float
    """Probability that the scores of a tied pair lie closer together than those of a decided one."""
    n_ties: int
    calibration: Calibration
    length: LengthReport
    axes: tuple[AxisReport, ...]
    fit: dict[str, float]
    """What the fit itself measured: its scalars, its raters."""
    said: tuple[str, ...]
    """What of this a person should know first."""

    def as_metrics(self) -> dict[str, float]:
        """The numbers, flat; the bins stay in the report."""
        calibration = {
            name: float(getattr(self.calibration, name))
            for name in ("temperature", "ece", "ece_low", "ece_high", "brier", "nll")
        }
        length = {f"length_{name}": float(value) for name, value in msgspec.to_builtins(self.length).items()}
        metrics = calibration | length | {"tie_auc": self.tie_auc, "n_ties_held_out": float(self.n_ties)}
        metrics |= {"choices_low": self.model.choices.low, "choices_high": self.model.choices.high}
        metrics["thumbs_auc"] = self.model.thumbs.value
        metrics |= {f"baseline_{each.name}": each.choices.value for each in self.baselines}
        metrics |= {f"axis_{each.axis}_n": float(each.n) for each in self.axes}
        return metrics | {f"axis_{each.axis}_auc": each.auc for each in self.axes if each.learned}


class _Held(NamedTuple):
    """Held-out judgements, laid out once for all that are measured on them."""

    ratings: Sequence[RatedResponse]
    pairs: Sequence[PreferencePair]
    answers: list[PromptResponse]
    outcomes: Tensor

    def split(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rated, left, right = scores.split([len(self.ratings), len(self.pairs), len(self.pairs)])
        return rated, left, right


def calibrate_reward(model: RewardModel, pairs: Sequence[PreferencePair]) -> Calibration:
    """Set the model's temperature by held-out pairs, and say how true its probabilities then are."""
    left, right = score(model, answers_of([], pairs)).split([len(pairs), len(pairs)])
    with torch.no_grad():
        model.temperature.fill_(1.0)
        logits, groups = model.choice_logits(left, right).cpu(), [each.prompt_key for each in pairs]
        found = calibrate(logits, _outcomes(pairs), model.eta.cpu(), groups, bias=float(model.side_bias))
        model.temperature.fill_(found.temperature)
    return found


def report_reward(
    model: RewardModel,
    train: Judgements,
    held_out: Judgements,
    *,
    calibration: Calibration,
    split: str,
    fit: dict[str, float],
    axes: Sequence[AxisReport] = (),
    reference: ScoreAnswers | None = None,
    previous: RewardModel | None = None,
) -> RewardReport:
    """Measure the model and every baseline on `held_out`; baselines that learn do so on `train`, as the model did.

    `reference` gives the reference policy's mean logprobs; it and the `previous` reward model may be missing.
    """
    held = _Held(*held_out, answers_of(*held_out), _outcomes(held_out[1]))
    scores = score(model, held.answers)
    measured = _measure("reward model", scores, held)
    rivals: dict[str, ScoreAnswers] = {
        "longer": lambda answers: _lengths(answers),
        "shorter": lambda answers: -_lengths(answers),
        "words": fit_words(*train).score,
    }
    if reference is not None:
        rivals["reference_logprob"] = reference
    if previous is not None:
        rivals["previous_model"] = lambda answers: score(previous, answers)
    blind = (_coin(held), _always_left(held))
    baselines = (*blind, *(_measure(name, rule(held.answers), held) for name, rule in rivals.items()))
    _, left, right = held.split(scores)
    lengths = _lengths(held.answers)
    paired = ScoredPairs(left, right, *held.split(lengths)[1:], held.outcomes)
    return RewardReport(
        split=split,
        model=measured,
        baselines=baselines,
        tie_auc=area_under_curve(-(left - right).abs(), held.outcomes == TIE),
        n_ties=int((held.outcomes == TIE).sum()),
        calibration=calibration,
        length=length_report(scores, lengths, paired),
        axes=tuple(axes),
        fit=fit,
        said=(*_sentences(measured, baselines), *(each.said for each in axes)),
    )


def mean_logprobs(policy: PreTrainedModel) -> ScoreAnswers:
    """The mean logprob per response token under a policy, nats, as a way to score answers."""

    @torch.no_grad()
    def score_by_policy(answers: Sequence[PromptResponse]) -> Tensor:
        scores = torch.zeros(len(answers))
        lengths = [len(prompt) + len(response) for prompt, response in answers]
        for group in plan_microbatches(lengths, range(len(answers)), TOKENS_TOGETHER):
            rows = [(tuple(answers[at][0]), tuple(answers[at][1])) for at in group]
            batch = TokenBatch.of(rows, policy.device)
            logprobs = analyse(policy, batch, temperature=1.0).logprobs
            scores[group] = (logprobs.sum(-1) / batch.response_mask.sum(-1)).cpu()
        return scores

    return score_by_policy


def table(report: RewardReport) -> list[str]:
    """The report for a terminal: a line for the model and for each baseline, then what is said of them."""
    lines = [f"{'':<18} {'choices':>8}  {'95 % interval':<18} {'thumbs AUC':>10}"]
    for each in (report.model, *report.baselines):
        choices, thumbs = each.choices, each.thumbs
        interval = f"{choices.low:.1%} to {choices.high:.1%}" if choices.n else "-"
        accuracy = f"{choices.value:.1%}" if choices.n else "-"
        lines.append(f"{each.name:<18} {accuracy:>8}  {interval:<18} {f'{thumbs.value:.3f}' if thumbs.n else '-':>10}")
    found, ruler = report.calibration, report.length
    lines += [
        f"temperature {found.temperature:.2f}; ece {found.ece:.3f} ({found.ece_low:.3f} to {found.ece_high:.3f}), "
        f"brier {found.brier:.3f}, nll {found.nll:.3f} on {found.n} choices; tie AUC {report.tie_auc:.3f} "
        f"({report.n_ties} ties)",
        f"length: correlation {ruler.correlation:.2f}, slope {ruler.slope:.2f}, accuracy {ruler.matched_accuracy:.1%} "
        f"on {ruler.n_matched} pairs of matched length",
    ]
    return [*lines, report.split, *report.said]


def _measure(name: str, scores: Tensor, held: _Held) -> Measured:
    rated, left, right = held.split(scores)
    decisive = held.outcomes != TIE
    people = [each.rater for each in held.pairs if not each.tie]
    hits = credits_of(left, right, held.outcomes)[decisive]
    return Measured(name=name, choices=share_interval(hits, people), thumbs=_thumbs(rated, held.ratings))


def _thumbs(scores: Tensor, ratings: Sequence[RatedResponse]) -> Estimate:
    up = is_up(ratings)
    if not bool(up.any()) or bool(up.all()):
        return NOTHING
    people = [each.rater for each in ratings]
    return resampled(lambda at: area_under_curve(scores[at], up[at]), people)


def _coin(held: _Held) -> Measured:
    return _measure("coin", torch.zeros(len(held.answers)), held)


def _always_left(held: _Held) -> Measured:
    n, pairs = len(held.ratings), len(held.pairs)
    return _measure("always_left", torch.tensor([0.0] * n + [1.0] * pairs + [0.0] * pairs), held)


def _lengths(answers: Sequence[PromptResponse]) -> Tensor:
    return torch.tensor([float(len(response)) for _, response in answers])


def _outcomes(pairs: Sequence[PreferencePair]) -> Tensor:
    return torch.tensor([outcome(each) for each in pairs], dtype=torch.long)


def _sentences(model: Measured, baselines: Sequence[Measured]) -> list[str]:
    """Which baselines are not beaten, by choices or, where there are none, by thumbs."""
    if not model.choices.n and not model.thumbs.n:
        return ["nothing was held out, so nothing is known of this reward model"]
    by_choices = bool(model.choices.n)
    ours = model.choices if by_choices else model.thumbs
    what = "of choices" if by_choices else "of pairs of thumbs"
    said = [f"it predicts {ours.value:.1%} {what} (95 % interval {ours.low:.1%} to {ours.high:.1%}, n = {ours.n})"]
    for each in baselines:
        theirs = each.choices if by_choices else each.thumbs
        if ours.value <= theirs.value:
            said.append(f"it does not beat {each.name}, which predicts {theirs.value:.1%}")
        elif ours.low <= theirs.value:
            said.append(f"it is not clearly better than {each.name}, which predicts {theirs.value:.1%}")
    return said
