"""PPO on a language model: sample, score, measure, improve, and again. `train_ppo` is the whole algorithm.

Contract: the policy's weights are trained in place, and the engine that samples holds that same model, so
nothing is copied; the reference is never touched. Policy and value head share one trunk and one forward pass.
There is no dropout anywhere, so the first minibatch after sampling has ratios of exactly 1. Knows nothing of
checkpoints, feedback or the gate. Sources: Schulman et al. 2017 (PPO), Ziegler et al. 2019 (KL in the
reward), Huang et al. 2024 (the N details).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rlhf_core.engine.engine import Engine
from rlhf_core.errors import TrainingError
from rlhf_core.learning.analyse import TokenIds, require_plain_head
from rlhf_core.learning.kl import adapt_kl_coef
from rlhf_core.learning.ppo_metrics import Metrics, rollout_metrics, update_metrics
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.ppo_update import Learner
from rlhf_core.learning.rollouts import Generator, SampledResponse, measure, sample
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.value import ValueHead
from rlhf_core.records import Sampling

__all__ = ["Metrics", "PPOResult", "PPOSettings", "ScoreFunction", "train_ppo"]

ScoreFunction = Callable[[Sequence[TokenIds], Sequence[TokenIds]], Tensor]
"""Prompts and responses to one normalised score each, [B]."""
Progress = Callable[[str, float], None]
"""Told what is being done (`rollouts 3/8`) and the share of the cycle that is behind."""


@dataclass(frozen=True, slots=True)
class PPOResult:
    """What a cycle leaves behind besides the trained policy itself."""

    metrics: list[Metrics]
    """One per update, with the names of `ppo_metrics.METRICS`; fewer than `updates` when the KL budget ended
    the cycle."""
    value_head: ValueHead


def train_ppo(
    policy: LoadedPolicy,
    reference: LoadedPolicy,
    score_fn: ScoreFunction,
    prompts: Sequence[TokenIds],
    settings: PPOSettings,
    seed: int,
    on_progress: Progress,
    *,
    value_head: ValueHead | None = None,
    engine: Generator | None = None,
) -> PPOResult:
    """Train `policy.model` in place for one cycle of `settings.updates` updates.

    `prompts` are token ids up to where the response begins; each update takes the next `settings.rollouts` of
    them, shuffled anew whenever they run out. `value_head` continues an earlier one (None starts at zero).
    `engine` must sample from `policy.model` itself (None makes one). The same arguments give the same weights
    and metrics, times aside. Raises TrainingError when there is nothing to train on, or a score, loss or
    gradient is not finite; ModelError for a model whose logits are changed after its head.
    """
    _check(policy, reference, prompts)
    head = value_head or ValueHead(policy.model.config.hidden_size).to(policy.model.device)
    learner = Learner(policy.model, head, settings, random.Random(seed))
    generator = engine or _engine(policy, prompts, settings, seed)
    queue = _endless(prompts, random.Random(seed + 1))
    kl_coef, history = settings.kl_coef, list[Metrics]()
    for update in range(settings.updates):
        laps = _Laps()
        on_progress(f"rollouts {update + 1}/{settings.updates}", update / settings.updates)
        responses = sample(generator, [next(queue) for _ in range(settings.rollouts)], _sampling(settings))
        laps.end("sample")
        scores = _scores(score_fn, responses).to(policy.model.device)
        laps.end("score")
        rollouts = measure(responses, scores, policy.model, reference.model, head, settings, kl_coef)
        metrics = {"update": update + 1.0} | rollout_metrics(rollouts, settings, kl_coef)
        laps.end("measure")
        on_progress(f"update {update + 1}/{settings.updates}", (update + 0.5) / settings.updates)
        stopped = metrics["objective/kl_seq"] > settings.kl_budget
        learned = update_metrics(()) if stopped else learner.improve(rollouts, update)
        laps.end("improve")
        history.append(metrics | learned | laps.seconds | {"stopped": float(stopped)})
        if stopped:
            break
        kl_coef = _next_kl_coef(kl_coef, metrics["objective/kl_seq"], settings)
    on_progress("done", 1.0)
    return PPOResult(history, head)


def _check(policy: LoadedPolicy, reference: LoadedPolicy, prompts: Sequence[TokenIds]) -> None:
    """Refuse what cannot train, and make sure that nothing but PPO changes the logprobs."""
    if not prompts or not all(prompts):
        raise TrainingError(f"PPO needs prompts of at least one token, not {len(prompts)} with some empty")
    if policy.model is reference.model:
        raise TrainingError("the policy is trained in place, so the reference must be another copy of the model")
    require_plain_head(policy.model)
    policy.model.eval()
    policy.model.requires_grad_(True)


def _engine(policy: LoadedPolicy, prompts: Sequence[TokenIds], settings: PPOSettings, seed: int) -> Engine:
    """An engine over the trained model itself, with slots no longer than the longest rollout can be."""
    longest = max(len(prompt) for prompt in prompts) + settings.max_new_tokens
    slots = min(settings.sampler_slots, settings.rollouts)
    return Engine(
        policy,
        max_running=slots,
        max_waiting=settings.rollouts,
        max_context=min(longest, policy.max_context),
        seed=seed,
    )


def _sampling(settings: PPOSettings) -> Sampling:
    return Sampling(temperature=settings.temperature, max_tokens=settings.max_new_tokens)


def _endless(prompts: Sequence[TokenIds], shuffler: random.Random) -> Iterator[TokenIds]:
    """Every prompt once in random order, then all again in another."""
    while True:
        yield from shuffler.sample(prompts, len(prompts))


def _scores(score_fn: ScoreFunction, responses: Sequence[SampledResponse]) -> Tensor:
    """One finite float32 score per response [B]."""
    scores = score_fn([one.prompt for one in responses], [one.token_ids for one in responses]).detach().float()
    if scores.shape != (len(responses),):
        raise TrainingError(f"{len(responses)} responses got scores of shape {tuple(scores.shape)}")
    if not bool(scores.isfinite().all()):
        raise TrainingError(f"{int((~scores.isfinite()).sum())} of {len(responses)} scores are not finite")
    return scores


def _next_kl_coef(kl_coef: float, ref_kl: float, settings: PPOSettings) -> float:
    if settings.kl_target is None:
        return kl_coef
    return adapt_kl_coef(
        kl_coef, ref_kl, target=settings.kl_target, episodes=settings.rollouts, horizon=settings.kl_horizon
    )


@dataclass(slots=True)
class _Laps:
    """Seconds of each stage of one update."""

    seconds: Metrics = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[f"time/{stage}"], self.last = now - self.last, now
