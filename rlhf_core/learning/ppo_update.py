"""The learning half of a PPO update: several passes over measured rollouts, one optimizer step per minibatch.

The loss of a minibatch is a mean over all its counted tokens, so how it is cut into microbatches, and among processes,
changes no gradient. The first epoch goes through the rollouts in the groups in which they were measured, so its first
minibatch must find the policy where it sampled; later epochs shuffle. A minibatch that would step from too far away
(approx_kl beyond the target) is not stepped, and ends the update.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rlhf_core.errors import TrainingError
from rlhf_core.learning.analyse import TokenBatch, analyse, response_states
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.losses import PolicyLoss, ValueLoss, ppo_policy_loss, ppo_value_loss, token_mean
from rlhf_core.learning.ppo_invariants import require_fresh_ratios
from rlhf_core.learning.ppo_metrics import EXTREMES, LOSS_NAMES, Metrics, MinibatchStats, update_metrics
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.rollouts import Rollouts, plan_microbatches
from rlhf_core.models.trainable import Trainable
from rlhf_core.models.value import ValueHead
from rlhf_core.records import TokenIds

EARLY_STOP = 1.5
"""The epochs of an update end when approx_kl exceeds this many times `target_kl`."""

ADAM_EPS = 1e-5
"""Larger than torch's default: damps the first steps of rarely seen weights (Huang et al. 2024)."""

Demonstration = tuple[TokenIds, TokenIds]
"""A prompt and the response that people gave to it."""


@dataclass(slots=True, eq=False)
class Learner:
    """A policy, its value head, and the optimizer of both, alive for one cycle."""

    trainee: Trainable
    value_head: ValueHead
    settings: PPOSettings
    seed: int = 0
    devices: Devices | None = None
    demonstrations: Sequence[Demonstration] = ()
    optimizer: torch.optim.AdamW = field(init=False)
    learning: list[nn.Parameter] = field(init=False)
    """The policy's part of what the optimizer holds."""
    seconds: Metrics = field(init=False)

    def __post_init__(self) -> None:
        self.learning = self.trainee.parameters
        groups = [{"params": self.learning}, {"params": list(self.value_head.parameters())}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, eps=ADAM_EPS, weight_decay=0.0, fused=True)
        self.seconds = {}

    def improve(self, rollouts: Rollouts, update: int) -> Metrics:
        """Learn from `rollouts` in update number `update`, counted from 0. Raises TrainingError when a number
        is not finite, or the first minibatch does not find the policy where it sampled."""
        self.seconds = dict.fromkeys(("time/forward", "time/backward", "time/optimizer"), 0.0)
        learning_rate = self._set_learning_rates(1.0 - update / self.settings.updates)
        value_only = update < self.settings.critic_warmup_updates
        steps: list[MinibatchStats] = []
        early_stop = False
        for number, minibatch in enumerate(self._minibatches(len(rollouts.responses), update)):
            stats = self.accumulate(rollouts, minibatch, value_only=value_only)
            if self.demonstrations and not value_only:
                stats |= self._imitate(update, number)
            if not steps:
                require_finite(stats)
                require_fresh_ratios(stats, self.devices.compute if self.devices else "float32")
            if stats["policy/approx_kl"] > EARLY_STOP * self.settings.target_kl:
                self.optimizer.zero_grad(set_to_none=True)
                early_stop = True
                break
            steps.append(stats | self._step(stats, value_only=value_only))
        learned = update_metrics(steps, learning_rate=learning_rate, early_stop=early_stop)
        return learned | self._size_of_last_step(any_step=bool(steps) and not value_only) | self.seconds

    def accumulate(self, rollouts: Rollouts, minibatch: Sequence[int], *, value_only: bool = False) -> MinibatchStats:
        """Add the gradient of one minibatch's loss to the parameters; `minibatch` holds rows of `rollouts`.

        With `value_only`, the gradient of the value loss to the value head alone. Gradients are this process's share
        until the step; the stats are already those of all.
        """
        tokens = rollouts.tokens(minibatch)
        rows = self.devices.share(minibatch) if self.devices else minibatch
        # One transfer at the end: reading a number of a GPU waits for it.
        sums = torch.zeros(len(LOSS_NAMES), device=rollouts.scores.device)
        most = torch.tensor([name in EXTREMES for name in LOSS_NAMES], device=sums.device)
        for group in plan_microbatches(rollouts.lengths, rows, self.settings.microbatch_tokens):
            index = torch.tensor(group, device=sums.device)
            started = time.perf_counter()
            policy_loss, value_loss, total = self._losses(rollouts, index, tokens, value_only=value_only)
            halfway = time.perf_counter()
            total.backward()
            self._took("forward", halfway - started)
            self._took("backward", time.perf_counter() - halfway)
            values = torch.stack([*policy_loss, *value_loss]).detach().float()
            sums = torch.where(most, torch.maximum(sums, values), sums + values)
        stats = dict(zip(LOSS_NAMES, sums.tolist(), strict=True))
        return self.devices.sum_numbers(stats, largest=EXTREMES) if self.devices else stats

    def _losses(
        self, rollouts: Rollouts, index: Tensor, tokens: int, *, value_only: bool
    ) -> tuple[PolicyLoss, ValueLoss, Tensor]:
        """Both losses of the rows `index` [b], as shares of a minibatch of `tokens` counted tokens, and what to
        descend."""
        batch = rollouts.batch.rows(index)
        mask, settings = batch.response_mask, self.settings

        def rows(values: Tensor) -> Tensor:
            return values[index, : mask.shape[1]]

        logprobs, entropy, values = self._analyse(batch, rows(rollouts.logprobs), value_only=value_only)
        policy_loss = ppo_policy_loss(
            logprobs,
            rows(rollouts.logprobs),
            rows(rollouts.advantages),
            mask,
            clip_range=settings.clip_range,
            clip_range_high=settings.clip_range_high,
            dual_clip=settings.dual_clip,
            tokens=tokens,
            weights=rows(rollouts.weights),
        )
        value_loss = ppo_value_loss(
            values,
            rows(rollouts.values),
            rows(rollouts.returns),
            mask,
            clip_range=settings.value_clip_range,
            tokens=tokens,
        )
        if value_only:
            return policy_loss, value_loss, value_loss.loss
        total = policy_loss.loss + settings.value_coef * value_loss.loss
        if settings.entropy_coef:
            total = total - settings.entropy_coef * token_mean(entropy, mask, tokens)
        return policy_loss, value_loss, total

    def _analyse(self, batch: TokenBatch, old_logprobs: Tensor, *, value_only: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Logprobs, entropy and values, all [b, R]. For the value alone: no gradient through the trunk, no logits."""
        wants_entropy = bool(self.settings.entropy_coef)
        with self.devices.autocast() if self.devices else nullcontext():
            if not value_only:
                return analyse(
                    self.trainee.model,
                    batch,
                    temperature=self.settings.temperature,
                    value_head=self.value_head,
                    with_entropy=wants_entropy,
                    entropy_learns=wants_entropy,
                )
            with torch.no_grad():
                states = response_states(self.trainee.model, batch)
            values = self.value_head(states.hidden)
            return (
                old_logprobs,
                torch.zeros_like(old_logprobs),
                torch.zeros_like(old_logprobs).index_put(states.places, values),
            )

    def _imitate(self, update: int, number: int) -> MinibatchStats:
        """Add the gradient of the demonstrations' share in an optimizer step: their token mean, weighted."""
        chosen = random.Random(f"{self.seed}/{update}/{number}/demonstrations").sample(
            range(len(self.demonstrations)), min(self.settings.minibatch_size, len(self.demonstrations))
        )
        pairs = [self.demonstrations[at] for at in chosen]
        tokens = sum(len(response) for _, response in pairs)
        lengths = [len(prompt) + len(response) for prompt, response in pairs]
        rows = range(len(pairs))
        total = 0.0
        for group in plan_microbatches(
            lengths, self.devices.share(rows) if self.devices else rows, self.settings.microbatch_tokens
        ):
            batch = TokenBatch.of([pairs[row] for row in group], self.trainee.model.device)
            with self.devices.autocast() if self.devices else nullcontext():
                said = analyse(self.trainee.model, batch, temperature=1.0)
            loss = -token_mean(said.logprobs, batch.response_mask, tokens)
            (self.settings.demonstration_coef * loss).backward()
            total += float(loss.detach())
        stats = {"policy/demonstration_loss": total}
        return self.devices.sum_numbers(stats) if self.devices else stats

    def _minibatches(self, rollouts: int, update: int) -> Iterator[list[int]]:
        """Rows of each minibatch of each epoch: in order first (prompts come shuffled), then shuffled anew."""
        size = self.settings.minibatch_size
        for epoch in range(self.settings.epochs):
            order = list(range(rollouts))
            if epoch:
                random.Random(f"{self.seed}/{update}/{epoch}").shuffle(order)
            yield from (order[start : start + size] for start in range(0, rollouts, size))

    def _set_learning_rates(self, share: float) -> float:
        rates = (self.settings.learning_rate * share, self.settings.value_learning_rate * share)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return rates[0]

    def _step(self, stats: MinibatchStats, *, value_only: bool) -> Metrics:
        """One optimizer step, each part's gradient clipped on its own: a fresh value head must not shrink the
        policy's."""
        started = time.perf_counter()
        heads = list(self.value_head.parameters())
        if self.devices:
            self.devices.sum_gradients(heads if value_only else [*self.learning, *heads])
        norms = {"policy/grad_norm": self._clip(self.learning), "value/grad_norm": self._clip(heads)}
        require_finite(stats | norms)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._took("optimizer", time.perf_counter() - started)
        return norms

    def _clip(self, parameters: Iterable[nn.Parameter]) -> float:
        return float(nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip))

    @torch.no_grad()
    def _size_of_last_step(self, *, any_step: bool) -> Metrics:
        """Norms of the learning weights and of what the last optimizer step changed in them.

        The change is worked out again from Adam's moments: a copy of the weights would cost as much memory as they do.
        """
        group = self.optimizer.param_groups[0]
        change = weight = torch.zeros((), device=self.learning[0].device)
        for parameter in self.learning:
            weight = weight + parameter.square().sum()
            state = self.optimizer.state.get(parameter)
            if state and any_step:
                step, (beta1, beta2) = float(state["step"]), group["betas"]
                spread = (state["exp_avg_sq"] / (1 - beta2**step)).sqrt_().add_(group["eps"])
                change = change + (group["lr"] / (1 - beta1**step) * state["exp_avg"] / spread).square().sum()
        sizes = torch.stack([change, weight]).sqrt().tolist()
        return {"policy/update_norm": sizes[0], "policy/weight_norm": sizes[1]}

    def _took(self, part: str, seconds: float) -> None:
        name = f"time/{part}"
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


def require_finite(numbers: Metrics) -> None:
    """Raises TrainingError naming the first number that is not finite."""
    for name, number in numbers.items():
        if not math.isfinite(number):
            raise TrainingError(f"PPO stopped: {name} is {number}")
