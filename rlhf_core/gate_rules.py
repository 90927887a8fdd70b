"""The gate's decision: numbers in, report out. No torch, no model, no clock, so that every rule is tested by
itself.

A candidate is published only if every check passes. What could not be measured fails: without evidence the
live policy stays. Each check says in a sentence what it saw, so that a person reading a rejection needs
nothing else.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from msgspec import Meta

from rlhf_core.records import GateCheck, GateReport
from rlhf_core.wilson import wilson_interval

Share = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
Count = Annotated[int, Meta(ge=1)]

INSUFFICIENT: Final = "insufficient evidence"


class GateSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds of the checks, and how answers are sampled for them."""

    least_feedback: Count = 10
    """Held-out judgements below which the reward model's accuracy is unknown, and the candidate is rejected.
    """
    least_prompts: Count = 10
    """Held-out prompts below which the win rate is unknown, and the candidate is rejected."""
    win_rate: Share = 0.5
    """Least win rate over the live policy, by the judging reward model; ties count half."""
    kl_budget: Positive = 10.0
    """Largest KL from the supervised policy, nats per response, on the candidate's own answers."""
    end_rate: Share = 0.95
    """Least share of the candidate's answers that end by themselves."""
    repetition: Share = 0.02
    """Largest share of answers that repeat a run of four tokens more than twice; or the live policy's own, if
    larger.
    """
    shortest: Positive = 0.5
    """Least ratio of the candidate's mean answer length to the live policy's."""
    longest: Positive = 2.0
    """Largest such ratio."""
    temperature: Positive = 1.0
    """At which both answer: what people are served."""
    max_new_tokens: Count = 96
    """Longest answer; one that reaches it has not ended."""
    max_running: Count = 32
    """Answers that are sampled at once."""
    seed: Annotated[int, Meta(ge=0)] = 0
    """The i-th prompt is answered with seed + i by both policies."""


class GateNumbers(msgspec.Struct, frozen=True, kw_only=True):
    """Everything measured about a candidate. Lengths in tokens, KL in nats per response."""

    reward_accuracy: float
    """Of the reward model that the candidate climbed, on the gate's own judgements."""
    length_accuracy: float
    """Of the length rule fitted on that model's training split, on the same judgements."""
    judge_accuracy: float
    """Of the judging reward model, on the same judgements."""
    judge_length_accuracy: float
    """Of the length rule fitted on the judge's training split."""
    feedback: int
    """How many those are."""
    wins: float
    """Prompts on which the candidate's answer scored higher, ties as halves."""
    prompts: int
    ref_kl: float
    end_rate: float
    live_end_rate: float
    repetition: float
    live_repetition: float
    length: float
    live_length: float
    score: float
    """Mean score of the candidate's answers by the judging reward model."""
    live_score: float
    ties: float = 0.0
    majority_accuracy: float = 0.0

    @property
    def win_rate(self) -> float:
        return self.wins / self.prompts if self.prompts else 0.0

    @property
    def length_ratio(self) -> float:
        """0 when either policy says nothing at all."""
        return self.length / self.live_length if self.live_length else 0.0


def decide(
    numbers: GateNumbers, settings: GateSettings, *, checkpoint_id: str, parent_version: int, now: float
) -> GateReport:
    """Hold every number against its bound. The report lists all checks, passed or not, and all numbers."""
    low, high = wilson_interval(numbers.wins, numbers.prompts)
    checks = (
        _accuracy("reward", numbers.reward_accuracy, numbers.length_accuracy, numbers.feedback, settings),
        _accuracy("judge", numbers.judge_accuracy, numbers.judge_length_accuracy, numbers.feedback, settings),
        _win_rate(numbers, settings, low, high),
        _ref_kl(numbers, settings),
        _end_rate(numbers, settings),
        _repetition(numbers, settings),
        _length_ratio(numbers, settings),
    )
    metrics = {name: float(getattr(numbers, name)) for name in GateNumbers.__struct_fields__}
    metrics |= {"win_rate": numbers.win_rate, "win_rate_low": low, "win_rate_high": high}
    metrics |= {"length_ratio": numbers.length_ratio}
    return GateReport(
        checkpoint_id=checkpoint_id,
        parent_version=parent_version,
        created_at=now,
        checks=checks,
        metrics=metrics,
    )


def _accuracy(model: str, seen: float, bound: float, feedback: int, settings: GateSettings) -> GateCheck:
    """Whether the `reward` or the `judge` model knows more about people's judgements than length alone does."""
    reason = f"the {model} model predicts {seen:.1%} of {feedback} held-out judgements, length alone {bound:.1%}"
    passed = seen > bound
    if feedback < settings.least_feedback:
        passed = False
        reason = (
            f"{INSUFFICIENT}: {feedback} held-out judgements to test the {model} model on, "
            f"{settings.least_feedback} are needed"
        )
    return GateCheck(name=f"{model}_accuracy", value=seen, bound=bound, passed=passed, reason=reason)


def _win_rate(numbers: GateNumbers, settings: GateSettings, low: float, high: float) -> GateCheck:
    seen, bound = numbers.win_rate, settings.win_rate
    if numbers.prompts < settings.least_prompts:
        reason = (
            f"{INSUFFICIENT}: {numbers.prompts} held-out prompts to compare answers on, "
            f"{settings.least_prompts} are needed"
        )
        return GateCheck(name="win_rate", value=seen, bound=bound, passed=False, reason=reason)
    reason = (
        f"the candidate wins {seen:.1%} of {numbers.prompts} held-out prompts against the live policy "
        f"(95 % interval {low:.1%} to {high:.1%}), at least {bound:.1%} is needed"
    )
    return GateCheck(name="win_rate", value=seen, bound=bound, passed=seen >= bound, reason=reason)


def _ref_kl(numbers: GateNumbers, settings: GateSettings) -> GateCheck:
    seen, bound = numbers.ref_kl, settings.kl_budget
    reason = f"the candidate is {seen:.2f} nats per answer from the supervised policy, the budget is {bound:.2f}"
    return GateCheck(name="ref_kl", value=seen, bound=bound, passed=seen <= bound, reason=reason)


def _end_rate(numbers: GateNumbers, settings: GateSettings) -> GateCheck:
    seen, bound = numbers.end_rate, settings.end_rate
    reason = f"{seen:.1%} of the candidate's answers end by themselves, at least {bound:.1%} must"
    return GateCheck(name="end_rate", value=seen, bound=bound, passed=seen >= bound, reason=reason)


def _repetition(numbers: GateNumbers, settings: GateSettings) -> GateCheck:
    seen, bound = numbers.repetition, max(settings.repetition, numbers.live_repetition)
    reason = f"{seen:.1%} of the candidate's answers repeat themselves, at most {bound:.1%} may"
    return GateCheck(name="repetition", value=seen, bound=bound, passed=seen <= bound, reason=reason)


def _length_ratio(numbers: GateNumbers, settings: GateSettings) -> GateCheck:
    """Two-sided; `bound` is the side that is nearer to being broken."""
    seen = numbers.length_ratio
    bound = settings.longest if seen >= 1.0 else settings.shortest
    reason = (
        f"the candidate's answers are {seen:.2f} times as long as the live policy's, "
        f"between {settings.shortest:.2f} and {settings.longest:.2f} is allowed"
    )
    passed = settings.shortest <= seen <= settings.longest
    return GateCheck(name="length_ratio", value=seen, bound=bound, passed=passed, reason=reason)
