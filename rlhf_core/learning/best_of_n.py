"""Best-of-N: sample several responses and keep the one that scores best. The baseline that every training is set
beside, because it needs none; and rejection fine-tuning, which teaches the policy what was kept.

The KL of best-of-N to the policy that it samples from is log N - (N - 1) / N where no two responses share a score, and
less where some do (Beirami et al. 2401.01879), so that score and KL of any N can be compared with a trained policy's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_core.learning.alternatives_settings import BestOfNSettings
from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.answer_logprobs import Answer, microbatches
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.dpo import mean_metrics
from rlhf_core.learning.fresh_responses import (
    Drawn,
    FreshResponses,
    Source,
    draw_responses,
    run_updates,
    shaped_scores_of,
)
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.policy_steps import PolicySteps, alone, linear_share, shuffled_minibatches
from rlhf_core.learning.ppo import ScoreFunction
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import TokenIds


class BestOfN(NamedTuple):
    """What sampling N responses and keeping the best gives."""

    n: int
    score: float
    """Expected shaped score of the kept response, over prompts."""
    kl: float
    """To the policy that was sampled, at most, in nats per response."""


class EqualKL(NamedTuple):
    """A trained policy beside best-of-N at the same KL."""

    score: float
    kl: float
    best_of_n: float
    """Score of best-of-N at this KL, or at its largest N where the policy went further."""
    n: float
    """The N of that KL, a real number; `largest` where the policy went further."""
    largest: int

    @property
    def beyond(self) -> bool:
        """Whether the policy is further from where it started than best-of-N was measured."""
        return self.kl > kl_bound(self.largest)

    def __str__(self) -> str:
        where = f"best of {self.largest}, which moves less" if self.beyond else f"best of {self.n:.1f} at the same KL"
        return f"score {self.score:.3f} at KL {self.kl:.2f}; {where}: {self.best_of_n:.3f}"


def kl_bound(n: float) -> float:
    """log N - (N - 1) / N, nats: the KL of best-of-N without ties, which is the most it can be."""
    return math.log(n) - (n - 1.0) / n


def n_at(kl: float) -> float:
    """The N, a real number of at least 1, whose `kl_bound` is `kl`: by bisection, for a KL of 0 or more."""
    low, high = 1.0, math.exp(kl + 1.0)
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if kl_bound(middle) < kl else (low, middle)
    return (low + high) / 2


def expected_best(scores: Tensor, n: int) -> Tensor:
    """Mean of the best of `n` among the M `scores` [P, M] of each prompt, [P]: over all choices of n of the M.

    The i-th smallest of M is the best in C(i - 1, n - 1) of C(M, n) choices. Unbiased for the best of n fresh ones.
    """
    many = scores.shape[-1]
    ways = torch.tensor([math.comb(rank, n - 1) / math.comb(many, n) for rank in range(many)], dtype=torch.float64)
    return scores.double().sort(-1).values @ ways


def measure_best_of_n(
    policy: LoadedPolicy,
    score_fn: ScoreFunction,
    prompts: Sequence[TokenIds],
    settings: BestOfNSettings,
    seed: int,
    devices: Devices | None = None,
) -> list[BestOfN]:
    """Best-of-1 to best-of-`candidates` of a policy that stays as it is, from `candidates` samples per prompt."""
    devices = devices or Devices(device=policy.model.device.type)
    asked = [prompt for prompt in prompts for _ in range(settings.candidates)]
    responses = draw_responses(policy, asked, settings, seed, 0, devices)
    _, shaped = shaped_scores_of(responses, score_fn, settings, devices)
    grouped = shaped.view(-1, settings.candidates)
    return [BestOfN(n, float(expected_best(grouped, n).mean()), kl_bound(n)) for n in range(1, settings.candidates + 1)]


def compare(table: Sequence[BestOfN], *, score: float, kl: float) -> EqualKL:
    """A policy with this mean shaped `score` at this `kl` to where it started, beside `measure_best_of_n` of that
    start: between two N their scores are interpolated in KL."""
    best = table[-1].score if kl >= table[-1].kl else table[0].score
    for left, right in pairwise(table):
        if left.kl <= kl < right.kl:
            best = left.score + (right.score - left.score) * (kl - left.kl) / (right.kl - left.kl)
    largest = table[-1].n
    return EqualKL(score, kl, best, min(n_at(max(0.0, kl)), float(largest)), largest)


def train_best_of_n(
    trainee: Trainable,
    score_fn: ScoreFunction,
    prompts: Sequence[TokenIds],
    settings: BestOfNSettings,
    seed: int,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
) -> list[Metrics]:
    """Rejection fine-tuning: in every update, teach the best of `candidates` fresh responses to each prompt.

    Returns the metrics of every update. The same arguments give the same weights and metrics, times aside. Fewer
    updates when the KL budget ends the training. Raises TrainingError when there is no prompt, or a number is not
    finite.
    """
    hooks, devices = hooks or Hooks(), devices or alone(trainee)
    source = Source(trainee, score_fn, prompts, settings, seed, devices)
    learner = AnswerLearner(settings, PolicySteps(trainee, settings, devices))

    def draw(update: int) -> FreshResponses:
        return source.read(source.draw(update, settings.candidates))

    def learn(fresh: FreshResponses, update: int) -> Metrics:
        best = fresh.drawn.shaped_scores.view(-1, settings.candidates).max(-1).values
        learned = learner.learn(best_answers(fresh.drawn, settings.candidates), update, seed)
        return {"objective/best_score": float(best.mean())} | learned

    return run_updates(learner.steps, settings, hooks, draw, learn)


def best_answers(drawn: Drawn, candidates: int) -> list[Answer]:
    """Of each `candidates` responses to one prompt the best by shaped score, the first of equals."""
    best = drawn.shaped_scores.view(-1, candidates).argmax(-1).tolist()
    return [drawn.answers[group * candidates + at] for group, at in enumerate(best)]


@dataclass(slots=True, eq=False)
class AnswerLearner:
    """Steps of a policy towards given answers: their mean negative logprob per token."""

    settings: BestOfNSettings
    steps: PolicySteps

    def learn(self, answers: Sequence[Answer], update: int, seed: int) -> Metrics:
        """All epochs of update number `update`, counted from 0."""
        shares = self.settings.updates * self.settings.epochs
        done = []
        for epoch in range(self.settings.epochs):
            share = linear_share(update * self.settings.epochs + epoch, shares, self.settings.warmup_share)
            order = shuffled_minibatches(answers, self.settings.minibatch_size, 1, seed + shares * update + epoch)
            done += [self.improve(minibatch, share) for minibatch in order]
        return mean_metrics(done)

    def improve(self, minibatch: Sequence[Answer], share: float) -> Metrics:
        """One optimizer step at `share` of the peak learning rate."""
        devices = self.steps.devices
        tokens = sum(len(response) for _, response in minibatch)
        lengths = [len(prompt) + len(response) for prompt, response in minibatch]
        loss = 0.0
        for group in microbatches(lengths, range(len(minibatch)), self.settings.microbatch_tokens, devices):
            batch = TokenBatch.of([minibatch[at] for at in group], self.steps.trainee.model.device)
            with devices.autocast():
                now = analyse(self.steps.trainee.model, batch, temperature=self.settings.temperature)
            part = -now.logprobs.float().sum() / tokens
            torch.autograd.backward(part)
            loss += float(part.detach())
        metrics = devices.sum_numbers({"policy/loss": loss})
        return metrics | self.steps.step(share, metrics)
