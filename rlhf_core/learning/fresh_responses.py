"""Responses drawn from the policy as it is now, scored and set beside the reference: what RLOO, online DPO and
best-of-N learn from.

Every response has a random state of its own, made of the seed, the update and its place. A run that goes on where an
earlier one stopped therefore draws what that one would have drawn, and several processes draw what one would.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rlhf_core.engine.engine import Engine
from rlhf_core.errors import TrainingError
from rlhf_core.learning.advantages import shape_scores
from rlhf_core.learning.alternatives_settings import SamplingSettings
from rlhf_core.learning.answer_logprobs import Answer, ReadAnswer, read_answers
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.policy_steps import PolicySteps
from rlhf_core.learning.ppo import ScoreFunction
from rlhf_core.learning.ppo_metrics import distinct_share
from rlhf_core.learning.rollouts import SampledResponse, prompts_at, request_seed, sample
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import Sampling, TokenIds


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """B responses with their scores, those to one prompt next to each other."""

    responses: list[SampledResponse]
    scores: Tensor
    """[B], as the score function gave them."""
    shaped_scores: Tensor
    """[B], clipped and less the penalty for not ending."""

    @property
    def answers(self) -> list[Answer]:
        return [(one.prompt, one.token_ids) for one in self.responses]


@dataclass(frozen=True, slots=True, eq=False)
class FreshResponses:
    """Drawn responses as policy and reference see them, before the update that learns from them."""

    drawn: Drawn
    read: list[ReadAnswer]
    """By the trainer's own forward pass, of the policy that sampled."""
    ref_logprobs: list[Tensor]
    """Per token [r] of each response."""

    @property
    def token_kl(self) -> list[Tensor]:
        """Log ratio to the reference (k1) per token [r] of each response, in nats."""
        return [own.logprobs - ref for own, ref in zip(self.read, self.ref_logprobs, strict=True)]

    @property
    def response_kl(self) -> Tensor:
        """[B], k1 in nats."""
        return torch.stack([each.sum() for each in self.token_kl])

    @property
    def kl_seq(self) -> float:
        """Mean KL to the reference, nats per response."""
        return float(self.response_kl.mean())


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """Where fresh responses come from, for one training."""

    trainee: Trainable
    score_fn: ScoreFunction
    prompts: Sequence[TokenIds]
    settings: SamplingSettings
    seed: int
    devices: Devices

    def draw(self, update: int, copies: int) -> Drawn:
        """`copies` responses to each of the prompts of update number `update`, about `rollouts` in all.

        Raises TrainingError when there is no prompt, or a score is not finite.
        """
        groups = max(1, self.settings.rollouts // copies)
        asked = prompts_at(self.prompts, range(update * groups, (update + 1) * groups), self.seed)
        prompts = [prompt for prompt in asked for _ in range(copies)]
        self.trainee.refresh()
        responses = draw_responses(self.trainee.policy, prompts, self.settings, self.seed, update, self.devices)
        return Drawn(responses, *shaped_scores_of(responses, self.score_fn, self.settings, self.devices))

    def read(self, drawn: Drawn, minibatches: Sequence[Sequence[int]] | None = None) -> FreshResponses:
        """What policy and reference say of `drawn`; `minibatches` are the rows that will be trained on together."""
        answers = drawn.answers
        ours = read_answers(
            self.trainee.model, answers, self.settings, self.devices, minibatches=minibatches, with_entropy=True
        )
        with self.trainee.reference() as model:
            theirs = read_answers(model, answers, self.settings, self.devices, minibatches=minibatches)
        return FreshResponses(drawn, ours, [each.logprobs for each in theirs])


def run_updates(
    steps: PolicySteps,
    settings: SamplingSettings,
    hooks: Hooks,
    draw: Callable[[int], FreshResponses],
    learn: Callable[[FreshResponses, int], Metrics],
) -> list[Metrics]:
    """Sample and learn in turn, from where an earlier run stopped, until the KL budget or the last update.

    `draw` gives the responses of an update counted from 0, `learn` learns from them and says what it measured. Returns
    what was logged.
    """
    history: list[Metrics] = []
    for update in range(steps.resume(hooks), settings.updates):
        began = time.perf_counter()
        hooks.progress(f"rollouts {update + 1}/{settings.updates}", update / settings.updates)
        fresh = draw(update)
        metrics = fresh_metrics(fresh, settings)
        sampled = time.perf_counter()
        hooks.progress(f"update {update + 1}/{settings.updates}", (update + 0.5) / settings.updates)
        stopped = fresh.kl_seq > settings.kl_budget
        if not stopped:
            metrics |= learn(fresh, update)
        metrics |= {"time/sample": sampled - began, "time/improve": time.perf_counter() - sampled}
        history.append(steps.report(hooks, update + 1, metrics | {"stopped": float(stopped)}))
        if stopped:
            break
    steps.trainee.refresh()
    hooks.progress("done", 1.0)
    return history


def draw_responses(
    policy: LoadedPolicy,
    prompts: Sequence[TokenIds],
    settings: SamplingSettings,
    seed: int,
    update: int,
    devices: Devices,
) -> list[SampledResponse]:
    """One response per prompt from the serving engine, at the settings' temperature and untruncated.

    The processes share the work, and all get everything. Raises TrainingError for no prompt, or an empty one.
    """
    if not prompts or not all(prompts):
        raise TrainingError(f"sampling needs prompts of at least one token, not {len(prompts)} with some empty")
    places = range(len(prompts))
    mine = devices.share(places)
    drawn: list[SampledResponse] = []
    if mine:
        asked = [prompts[at] for at in mine]
        sampling = Sampling(temperature=settings.temperature, max_tokens=settings.max_new_tokens)
        seeds = [request_seed(seed, update, at) for at in mine]
        drawn = sample(_engine(policy, asked, settings), asked, sampling, seeds=seeds)
    return devices.gather(drawn, len(places))


def shaped_scores_of(
    responses: Sequence[SampledResponse], score_fn: ScoreFunction, settings: SamplingSettings, devices: Devices
) -> tuple[Tensor, Tensor]:
    """Scores [B] as given, and shaped (clipped, less the penalty for not ending); the processes share the work."""
    mine = devices.share(responses)
    scored = finite_scores(score_fn, mine) if mine else torch.zeros(0)
    scores = torch.tensor(devices.gather(scored.tolist(), len(responses)))
    ended = torch.tensor([one.ended for one in responses])
    shaped = shape_scores(
        scores, ended, score_clip=settings.score_clip, missing_end_penalty=settings.missing_end_penalty
    )
    return scores, shaped


def finite_scores(score_fn: ScoreFunction, responses: Sequence[SampledResponse]) -> Tensor:
    """One float32 score per response [B], on the CPU. Raises TrainingError when one is missing or not finite."""
    scores = score_fn([one.prompt for one in responses], [one.token_ids for one in responses]).detach().float().cpu()
    if scores.shape != (len(responses),):
        raise TrainingError(f"{len(responses)} responses got scores of shape {tuple(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise TrainingError(f"{int((~scores.isfinite()).sum())} of {len(responses)} scores are not finite")
    return scores


def drawn_metrics(drawn: Drawn, settings: SamplingSettings) -> Metrics:
    """Scores and shapes of sampled responses, under the names that PPO's metrics have."""
    lengths = torch.tensor([float(len(one.token_ids)) for one in drawn.responses])
    return {
        "objective/score": float(drawn.scores.mean()),
        "objective/score_std": float(drawn.scores.std(correction=0)),
        "objective/shaped_score": float(drawn.shaped_scores.mean()),
        "objective/score_clip_fraction": float((drawn.scores.abs() > settings.score_clip).float().mean()),
        "objective/missing_end_rate": sum(not one.ended for one in drawn.responses) / len(lengths),
        "objective/response_length": float(lengths.mean()),
        "objective/response_length_p95": float(lengths.quantile(0.95)),
        "objective/distinct_2": distinct_share([one.token_ids for one in drawn.responses]),
        "rollout/tokens": float(lengths.sum()),
    }


def fresh_metrics(fresh: FreshResponses, settings: SamplingSettings) -> Metrics:
    """The same, and how far the policy is from its reference and from what the engine said of it."""
    log_ratios = torch.cat(fresh.token_kl)
    both = zip(fresh.read, fresh.drawn.responses, strict=True)
    gap = torch.cat([own.logprobs - torch.tensor(one.logprobs) for own, one in both]).abs()
    return drawn_metrics(fresh.drawn, settings) | {
        "objective/kl_seq": fresh.kl_seq,
        "objective/kl_k3": float((torch.expm1(-log_ratios) + log_ratios).sum()) / len(fresh.read),
        "objective/entropy": float(torch.cat([each.entropy for each in fresh.read]).mean()),
        "rollout/logprob_gap_mean": float(gap.mean()),
        "rollout/logprob_gap_max": float(gap.max()),
    }


def _engine(policy: LoadedPolicy, prompts: Sequence[TokenIds], settings: SamplingSettings) -> Engine:
    """An engine over the trained model itself, with slots no longer than the longest response can be."""
    longest = max(len(prompt) for prompt in prompts) + settings.max_new_tokens
    return Engine(
        policy,
        max_running=min(settings.sampler_slots, len(prompts)),
        max_waiting=len(prompts),
        max_context=min(longest, policy.max_context),
    )
