"""Kahneman-Tversky optimisation: a policy learns from thumbs alone, each on its own answer, without pairs.

Contract: the trainee's weights are trained in place; its reference is read once, before the first step, and never
again. Each thumb's prompt is also paired, once and for all, with an answer to another prompt: how
much likelier the policy makes those is the zero that gains are counted from. Source: Ethayarajh et al. 2402.01306.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.learning.alternatives_settings import KTOSettings
from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.answer_logprobs import Answer, answer_logprobs, microbatches
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.policy_losses import (
    ThumbWeights,
    balanced_thumb_weights,
    hits,
    kto_losses,
    mismatched_kl,
    sequence_sums,
)
from rlhf_core.learning.policy_steps import PolicySteps, alone, require_weights, run_steps, shuffled_minibatches
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import RatedResponse, TokenIds

SUMS = ("loss", "up_ratio", "down_ratio", "ups", "downs", "hits", "up_logprob", "down_logprob", "tokens")
"""What a minibatch adds up over its thumbs, and over processes."""


@dataclass(frozen=True, slots=True)
class ReferredThumb:
    """A rated answer and an answer to another prompt under its prompt, with both logprobs under the reference."""

    prompt: TokenIds
    response: TokenIds
    mismatched: TokenIds
    up: bool
    ref_logprob: float
    ref_mismatched: float
    weight: float = 1.0

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.response)


def train_kto(
    trainee: Trainable,
    ratings: Sequence[RatedResponse],
    settings: KTOSettings,
    seed: int,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
    *,
    weights: Sequence[float] | None = None,
) -> list[Metrics]:
    """Train on thumbs and return the metrics of every step.

    `weights` say how much each thumb counts, relative to the others, besides what balances up and down. The same
    arguments give the same weights and metrics. Raises TrainingError when all thumbs say the same, or a number is not
    finite.
    """
    hooks, devices = hooks or Hooks(), devices or alone(trainee)
    _check(ratings, weights)
    hooks.progress("reference", 0.0)
    answers = [(each.prompt_token_ids, each.token_ids) for each in ratings]
    others = mismatch(answers, seed)
    # Each row fits the context, but a prompt with the answer of another row may not.
    room = trainee.policy.max_context
    crossed = [
        (prompt, answers[other][1][: room - len(prompt)]) for (prompt, _), other in zip(answers, others, strict=True)
    ]
    with trainee.reference() as model:
        ref_logprobs = answer_logprobs(model, answers + crossed, settings, devices).view(2, -1).T.tolist()
    scale = len(ratings) / sum(weights) if weights else 1.0
    referred = [
        ReferredThumb(prompt, response, mismatched, each.value == "up", own, other, scale * weight)
        for each, (prompt, response), (_, mismatched), (own, other), weight in zip(
            ratings, answers, crossed, ref_logprobs, weights or [1.0] * len(ratings), strict=True
        )
    ]
    learner = ThumbLearner(settings, thumb_weights(referred, settings), PolicySteps(trainee, settings, devices))
    minibatches = shuffled_minibatches(referred, settings.minibatch_size, settings.epochs, seed + 1)
    return run_steps(learner.steps, minibatches, settings.warmup_share, hooks, learner.improve)


def mismatch(answers: Sequence[Answer], seed: int) -> list[int]:
    """For each answer the index of another, whose prompt differs where prompts allow it. Every index occurs once.

    Answers stand in a circle, those to one prompt together, and each takes the one that stands as far ahead as the
    most answers to a single prompt.
    """
    most = max(Counter(prompt for prompt, _ in answers).values())
    place = {prompt: at for at, prompt in enumerate(dict.fromkeys(prompt for prompt, _ in answers))}
    shuffled = random.Random(seed).sample(range(len(place)), len(place))
    circle = sorted(range(len(answers)), key=lambda at: shuffled[place[answers[at][0]]])
    ahead = most if most < len(answers) else 1
    found = [0] * len(answers)
    for at, index in enumerate(circle):
        found[index] = circle[(at + ahead) % len(circle)]
    return found


def thumb_weights(thumbs: Sequence[ReferredThumb], settings: KTOSettings) -> ThumbWeights:
    """Those of the settings; what they leave open balances the two kinds, or is 1 beside a given weight."""
    if settings.up_weight is None and settings.down_weight is None:
        ups = sum(each.weight for each in thumbs if each.up)
        return balanced_thumb_weights(ups, sum(each.weight for each in thumbs) - ups)
    return ThumbWeights(settings.up_weight or 1.0, settings.down_weight or 1.0)


@dataclass(slots=True, eq=False)
class ThumbLearner:
    """Steps of a policy along the KTO loss of referred thumbs."""

    settings: KTOSettings
    weights: ThumbWeights
    steps: PolicySteps

    def improve(self, minibatch: Sequence[ReferredThumb], share: float) -> Metrics:
        """One optimizer step on `minibatch` at `share` of the peak learning rate. The loss is the mean over thumbs."""
        devices = self.steps.devices
        reference_point = self._reference_point(minibatch)
        totals = dict.fromkeys(SUMS, 0.0)
        lengths = [thumb.length for thumb in minibatch]
        for group in microbatches(lengths, range(len(minibatch)), self.settings.microbatch_tokens, devices):
            sums = self._accumulate([minibatch[at] for at in group], len(minibatch), reference_point)
            totals = {name: totals[name] + sums[name] for name in SUMS}
        metrics = thumb_metrics(devices.sum_numbers(totals), float(reference_point), self.settings.kl_coef)
        return metrics | self.steps.step(share, metrics)

    def _reference_point(self, minibatch: Sequence[ReferredThumb]) -> Tensor:
        """z0 of the whole minibatch, a scalar on the policy's device."""
        crossed = [(thumb.prompt, thumb.mismatched) for thumb in minibatch]
        logprobs = answer_logprobs(self.steps.trainee.model, crossed, self.settings, self.steps.devices)
        ref_logprobs = torch.tensor([thumb.ref_mismatched for thumb in minibatch])
        return mismatched_kl(logprobs - ref_logprobs).to(self.steps.trainee.model.device)

    def _accumulate(self, thumbs: Sequence[ReferredThumb], total: int, reference_point: Tensor) -> dict[str, float]:
        """Add the gradient of one microbatch of a minibatch of `total` thumbs. Returns its part of SUMS."""
        device = self.steps.trainee.model.device
        batch = TokenBatch.of([(thumb.prompt, thumb.response) for thumb in thumbs], device)
        with self.steps.devices.autocast():
            now = analyse(self.steps.trainee.model, batch, temperature=self.settings.temperature)
        logprobs = sequence_sums(now.logprobs.float(), batch.response_mask)
        ratios = logprobs - torch.tensor([thumb.ref_logprob for thumb in thumbs], device=device)
        up = torch.tensor([thumb.up for thumb in thumbs], device=device)
        losses = kto_losses(
            ratios,
            up,
            reference_point,
            kl_coef=self.settings.kl_coef,
            up_weight=self.weights.up,
            down_weight=self.weights.down,
        )
        loss = (losses * torch.tensor([thumb.weight for thumb in thumbs], device=device)).sum() / total
        torch.autograd.backward(loss)
        sums = {
            "loss": loss,
            "up_ratio": ratios[up].sum(),
            "down_ratio": ratios[~up].sum(),
            "ups": up.sum(),
            "downs": (~up).sum(),
            "hits": hits(torch.where(up, ratios - reference_point, reference_point - ratios)),
            "up_logprob": logprobs[up].sum(),
            "down_logprob": logprobs[~up].sum(),
            "tokens": batch.response_mask.sum(),
        }
        return {name: float(number.detach()) for name, number in sums.items()}


def thumb_metrics(totals: dict[str, float], reference_point: float, kl_coef: float) -> Metrics:
    """What one minibatch measured before its step. Rewards are those that the policy implies: kl_coef times the log
    ratio to the reference."""
    ups, downs = max(1.0, totals["ups"]), max(1.0, totals["downs"])
    up, down = kl_coef * totals["up_ratio"] / ups, kl_coef * totals["down_ratio"] / downs
    return {
        "policy/loss": totals["loss"],
        "preference/up_reward": up,
        "preference/down_reward": down,
        "preference/margin": up - down,
        "preference/accuracy": totals["hits"] / max(1.0, totals["ups"] + totals["downs"]),
        "preference/reference_point": reference_point,
        "preference/ups": totals["ups"],
        "preference/downs": totals["downs"],
        "policy/up_logprob": totals["up_logprob"] / ups,
        "policy/down_logprob": totals["down_logprob"] / downs,
        "tokens": totals["tokens"],
    }


def _check(ratings: Sequence[RatedResponse], weights: Sequence[float] | None) -> None:
    values = {each.value for each in ratings}
    if len(values) < 2:
        said = f"all {len(ratings)} are {values.pop()}" if values else "there are none"
        raise TrainingError(f"KTO needs thumbs up and thumbs down, but {said}")
    for each in ratings:
        if not (each.prompt_token_ids and each.token_ids):
            raise TrainingError(f"the rating {each.event_id} has an empty prompt or answer")
    require_weights(weights, len(ratings))
