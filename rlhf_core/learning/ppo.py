"""PPO on a language model: sample, score, measure, improve, and again. `train_ppo` is the whole algorithm.

Contract: the policy's weights are trained in place, and the engine that samples computes with those same weights; the
reference is never touched. Policy and value head share one trunk and one forward pass. There is no dropout anywhere,
so the first minibatch after sampling has ratios of exactly 1. All that is random follows from the seed and the number
of the update, so a run that is resumed, or split among processes, goes the same way. Knows nothing of checkpoints,
feedback or the gate. Sources: Schulman et al. 2017 (PPO), Ziegler et al. 2019 (KL in the reward), Huang et al. 2024
(the N details).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from transformers import PreTrainedModel

from rlhf_core.engine.engine import Engine
from rlhf_core.errors import TrainingError
from rlhf_core.learning.analyse import require_plain_head
from rlhf_core.learning.axis_floor import next_multiplier
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.kl import adapt_kl_coef
from rlhf_core.learning.ppo_invariants import require_start_at_reference
from rlhf_core.learning.ppo_metrics import Metrics, no_update, peak_memory, rollout_metrics
from rlhf_core.learning.ppo_scores import AxisScores, ScoreFunction, Scorers, score_responses
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.ppo_stop import check_stops, say_stop
from rlhf_core.learning.ppo_update import Demonstration, Learner
from rlhf_core.learning.rollouts import Generator, Rollouts, SampledResponse, measure, prompts_at, request_seed, sample
from rlhf_core.learning.training_state import TrainingState, capture, restore
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.trainable import Trainable
from rlhf_core.models.value import ValueHead
from rlhf_core.records import Sampling, TokenIds

__all__ = ["AxisScores", "Metrics", "PPOResult", "PPOSettings", "ScoreFunction", "train_ppo"]


@dataclass(frozen=True, slots=True)
class PPOResult:
    """What a cycle leaves behind besides the trained policy itself."""

    metrics: list[Metrics]
    """One per update of this run, with the names of `ppo_metrics.METRICS`."""
    value_head: ValueHead
    stopped: str = ""
    """Which stop conditions ended the cycle early, with their numbers. Empty: none did."""


@dataclass(slots=True)
class _Cycle:
    """What one update hands to the next besides weights and moments; plain numbers, kept in the training state."""

    kl_coef: float
    multiplier: float = 0.0
    episodes: int = 0
    tokens: int = 0
    start: Metrics = field(default_factory=dict)
    """The first update's metrics: what the stop conditions compare with."""
    best_judge: float = float("-inf")


def train_ppo(
    trainee: Trainable,
    score_fn: ScoreFunction,
    prompts: Sequence[TokenIds],
    settings: PPOSettings,
    seed: int,
    *,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
    value_head: ValueHead | None = None,
    engine: Generator | None = None,
    axis_scores: AxisScores | None = None,
    judge: ScoreFunction | None = None,
    served: PreTrainedModel | None = None,
    demonstrations: Sequence[Demonstration] = (),
) -> PPOResult:
    """Train `trainee` (models/trainable.py) in place for one cycle of `settings.updates` updates.

    `prompts` are token ids up to where the response begins; each update takes the next `settings.rollouts` of
    them, shuffled anew whenever they run out. `value_head` continues an earlier one (None starts at zero).
    `engine` must sample from `trainee.policy` itself (None makes one). `axis_scores` is needed for weights or a floor
    on axes; `judge` scores beside, is not climbed, and may stop the cycle; `served` is the policy to report a KL to;
    `demonstrations` are mixed in by `demonstration_coef`. The same arguments give the same weights and metrics, times
    and memory aside, on however many processes (to rounding), and after a resume. Raises TrainingError when there is
    nothing to train on, a score, loss or gradient is not finite, or an invariant of PPO is broken; ModelError for a
    model whose logits are changed after its head.
    """
    _check(trainee, prompts, settings, axis_scores, demonstrations)
    hooks = hooks or Hooks()
    head = value_head or ValueHead.of(trainee.model)
    learner = Learner(trainee, head, settings, seed, devices, demonstrations)
    source = _Source(
        trainee,
        engine or _engine(trainee.policy, prompts, settings, seed),
        prompts,
        Scorers(score_fn, axis_scores, judge),
        head,
        settings,
        seed,
        devices,
        served,
    )
    cycle = _resume(hooks.resume, learner) if hooks.resume else _Cycle(settings.kl_coef)
    history, stopped = list[Metrics](), ""
    for update in range(hooks.resume.step if hooks.resume else 0, settings.updates):
        laps = _Laps()
        hooks.progress(f"rollouts {update + 1}/{settings.updates}", update / settings.updates)
        rollouts, metrics = source.collect(update, cycle, laps)
        cycle.start = cycle.start or dict(metrics)
        metrics |= check_stops(metrics, cycle.start, cycle.best_judge, settings)
        stopped = say_stop(metrics, settings)
        hooks.progress(f"update {update + 1}/{settings.updates}", (update + 0.5) / settings.updates)
        metrics |= no_update() if stopped else learner.improve(rollouts, update)
        laps.end("improve")
        _advance(cycle, metrics, settings)
        metrics |= laps.seconds | _totals(cycle, laps, metrics["rollout/tokens"], settings.rollouts)
        metrics |= {"mem/peak": peak_memory(trainee.model.device), "stopped": float(bool(stopped))}
        history.append({"step": update + 1.0} | metrics)
        hooks.log(history[-1])
        if stopped:
            break
        if hooks.keeps(update + 1) and hooks.keep:
            hooks.keep(_capture(update + 1, learner, cycle))
    trainee.refresh()
    hooks.progress("done", 1.0)
    return PPOResult(history, head, stopped)


def _check(
    trainee: Trainable,
    prompts: Sequence[TokenIds],
    settings: PPOSettings,
    axis_scores: AxisScores | None,
    demonstrations: Sequence[Demonstration],
) -> None:
    """Refuse what cannot train, and make sure that nothing but PPO changes the logprobs."""
    if not prompts or not all(prompts):
        raise TrainingError(f"PPO needs prompts of at least one token, not {len(prompts)} with some empty")
    if settings.axes and axis_scores is None:
        named = settings.axes[0]
        raise TrainingError(f"PPO is to weigh the axis {named!r}, but there is nothing that scores axes")
    if bool(settings.demonstration_coef) != bool(demonstrations):
        given = f"{len(demonstrations)} demonstrations and a demonstration_coef of {settings.demonstration_coef:g}"
        raise TrainingError(f"PPO mixes in demonstrations when it has both them and a weight for them, not {given}")
    require_plain_head(trainee.model)
    trainee.model.eval()


def _engine(policy: LoadedPolicy, prompts: Sequence[TokenIds], settings: PPOSettings, seed: int) -> Engine:
    """An engine over the trained weights themselves, with slots no longer than the longest rollout can be."""
    longest = max(len(prompt) for prompt in prompts) + settings.max_new_tokens
    slots = min(settings.sampler_slots, settings.rollouts)
    return Engine(
        policy,
        max_running=slots,
        max_waiting=settings.rollouts,
        max_context=min(longest, policy.max_context),
        seed=seed,
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """Where measured rollouts come from."""

    trainee: Trainable
    generator: Generator
    prompts: Sequence[TokenIds]
    scorers: Scorers
    value_head: ValueHead
    settings: PPOSettings
    seed: int
    devices: Devices | None
    served: PreTrainedModel | None

    def collect(self, update: int, cycle: _Cycle, laps: _Laps) -> tuple[Rollouts, Metrics]:
        """Sample, score and measure the rollouts of an update, counted from 0."""
        self.trainee.refresh()
        responses = self._sample(update)
        laps.end("rollout")
        scored = score_responses(responses, self.scorers, self.settings, cycle.multiplier, self.devices)
        laps.end("score")
        rollouts = measure(
            scored.responses,
            scored.scores,
            self.trainee,
            self.value_head,
            self.settings,
            cycle.kl_coef,
            served=self.served,
            devices=self.devices,
        )
        if update == 0 and self.trainee.starts_as_reference:
            compute = self.devices.compute if self.devices else "float32"
            require_start_at_reference(rollouts.logprobs, rollouts.ref_logprobs, compute)
        metrics = rollout_metrics(rollouts, self.settings, cycle.kl_coef) | scored.metrics
        laps.end("measure")
        return rollouts, metrics

    def _sample(self, update: int) -> list[SampledResponse]:
        """This process's share of the update's responses."""
        indices = list(range(self.settings.rollouts))
        mine = self.devices.share(indices) if self.devices else indices
        return sample(
            self.generator,
            prompts_at(self.prompts, [update * self.settings.rollouts + index for index in mine], self.seed),
            Sampling(temperature=self.settings.temperature, max_tokens=self.settings.max_new_tokens),
            seeds=[request_seed(self.seed, update, index) for index in mine],
        )


def _advance(cycle: _Cycle, metrics: Mapping[str, float], settings: PPOSettings) -> None:
    """What the next update starts from, after what this one measured."""
    cycle.episodes += settings.rollouts
    cycle.tokens += int(metrics["rollout/tokens"])
    cycle.best_judge = max(cycle.best_judge, metrics.get("objective/judge_score", cycle.best_judge))
    if settings.kl_target is not None:
        cycle.kl_coef = adapt_kl_coef(
            cycle.kl_coef,
            metrics["objective/kl_seq"],
            target=settings.kl_target,
            episodes=settings.rollouts,
            horizon=settings.kl_horizon,
        )
    if settings.floor_axis is not None:
        mean = metrics[f"axis/{settings.floor_axis}"]
        cycle.multiplier = next_multiplier(cycle.multiplier, mean, settings.floor, settings.floor_rate)


def _totals(cycle: _Cycle, laps: _Laps, tokens: float, episodes: int) -> Metrics:
    return {
        "episodes": float(cycle.episodes),
        "tokens": float(cycle.tokens),
        "episodes_per_s": episodes / sum(laps.seconds.values()),
        "rollout/tokens_per_s": tokens / laps.seconds["time/rollout"],
    }


def _capture(step: int, learner: Learner, cycle: _Cycle) -> TrainingState:
    modules = {"policy": learner.trainee.model, "value": learner.value_head}
    numbers = asdict(cycle) | {"best_judge": None if cycle.best_judge == float("-inf") else cycle.best_judge}
    return capture(step, modules, learner.optimizer, numbers={"cycle": numbers})


def _resume(state: TrainingState, learner: Learner) -> _Cycle:
    modules = {"policy": learner.trainee.model, "value": learner.value_head}
    restore(state, modules, learner.optimizer)
    numbers = dict(state.numbers["cycle"])
    if numbers["best_judge"] is None:
        numbers["best_judge"] = float("-inf")
    return _Cycle(**numbers)


@dataclass(slots=True)
class _Laps:
    """Seconds of each stage of one update."""

    seconds: Metrics = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def end(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[f"time/{stage}"], self.last = now - self.last, now
