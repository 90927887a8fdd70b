"""The learning half of a PPO update: several passes over measured rollouts, one optimizer step per minibatch.

The loss of a minibatch is a mean over all its counted tokens, so how it is cut into microbatches changes no
gradient. A minibatch that would step from too far away (approx_kl beyond the target) is not stepped, and ends
the update.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_core.errors import TrainingError
from rlhf_core.learning.analyse import analyse
from rlhf_core.learning.losses import PolicyLoss, ValueLoss, ppo_policy_loss, ppo_value_loss
from rlhf_core.learning.ppo_metrics import Metrics, MinibatchStats, update_metrics
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.rollouts import Rollouts, plan_microbatches
from rlhf_core.models.value import ValueHead

EARLY_STOP = 1.5
"""The epochs of an update end when approx_kl exceeds this many times `target_kl`."""

ADAM_EPS = 1e-5
"""Larger than torch's default: damps the first steps of rarely seen weights (Huang et al. 2024)."""


@dataclass(slots=True, eq=False)
class Learner:
    """A policy, its value head, and the optimizer of both, alive for one cycle."""

    policy: PreTrainedModel
    value_head: ValueHead
    settings: PPOSettings
    shuffler: random.Random
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        groups = [{"params": list(self.policy.parameters())}, {"params": list(self.value_head.parameters())}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, eps=ADAM_EPS, weight_decay=0.0, fused=True)

    def improve(self, rollouts: Rollouts, update: int) -> Metrics:
        """Learn from `rollouts` in update number `update`, counted from 0. Raises TrainingError when a number
        is not finite."""
        learning_rate = self._set_learning_rates(1.0 - update / self.settings.updates)
        value_only = update < self.settings.critic_warmup_updates
        steps: list[MinibatchStats] = []
        for minibatch in self._minibatches(len(rollouts.lengths)):
            stats = self.accumulate(rollouts, minibatch, value_only=value_only)
            if stats["policy/approx_kl"] > EARLY_STOP * self.settings.target_kl:
                self.optimizer.zero_grad(set_to_none=True)
                return update_metrics(steps, learning_rate=learning_rate, early_stop=True)
            steps.append(stats | self._step(stats))
        return update_metrics(steps, learning_rate=learning_rate)

    def accumulate(self, rollouts: Rollouts, minibatch: Sequence[int], *, value_only: bool = False) -> MinibatchStats:
        """Add the gradient of one minibatch's loss to the parameters; `minibatch` holds rows of `rollouts`.

        With `value_only`, the gradient of the value loss to the value head alone.
        """
        tokens = int(rollouts.batch.response_mask[list(minibatch)].sum())
        totals: MinibatchStats = defaultdict(float)
        for group in plan_microbatches(rollouts.lengths, minibatch, self.settings.microbatch_tokens):
            index = torch.tensor(group, device=rollouts.scores.device)
            policy_loss, value_loss = self._losses(rollouts, index, tokens)
            if value_only:
                torch.autograd.backward(value_loss.loss, inputs=list(self.value_head.parameters()))
            else:
                torch.autograd.backward(policy_loss.loss + self.settings.value_coef * value_loss.loss)
            _add_stats(totals, policy_loss, value_loss)
        return dict(totals)

    def _losses(self, rollouts: Rollouts, index: Tensor, tokens: int) -> tuple[PolicyLoss, ValueLoss]:
        """Both losses of the rows `index` [b], as shares of a minibatch of `tokens` counted tokens."""
        batch = rollouts.batch.rows(index)
        mask = batch.response_mask

        def rows(values: Tensor) -> Tensor:
            return values[index, : mask.shape[1]]

        now = analyse(self.policy, batch, temperature=self.settings.temperature, value_head=self.value_head)
        policy_loss = ppo_policy_loss(
            now.logprobs,
            rows(rollouts.logprobs),
            rows(rollouts.advantages),
            mask,
            clip_range=self.settings.clip_range,
            tokens=tokens,
            weights=rows(rollouts.weights),
        )
        value_loss = ppo_value_loss(
            now.values,
            rows(rollouts.values),
            rows(rollouts.returns),
            mask,
            clip_range=self.settings.value_clip_range,
            tokens=tokens,
        )
        return policy_loss, value_loss

    def _minibatches(self, rollouts: int) -> Iterator[list[int]]:
        """Rows of each minibatch of each epoch, shuffled anew per epoch."""
        size = self.settings.minibatch_size
        for _ in range(self.settings.epochs):
            order = self.shuffler.sample(range(rollouts), rollouts)
            yield from (order[start : start + size] for start in range(0, rollouts, size))

    def _set_learning_rates(self, share: float) -> float:
        rates = (self.settings.learning_rate * share, self.settings.value_learning_rate * share)
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        return rates[0]

    def _step(self, stats: MinibatchStats) -> Metrics:
        """One optimizer step, each part's gradient clipped on its own: a fresh value head must not shrink the
        policy's."""
        norms = {
            "policy/grad_norm": self._clip(self.policy.parameters()),
            "value/grad_norm": self._clip(self.value_head.parameters()),
        }
        for name, number in (stats | norms).items():
            if not math.isfinite(number):
                raise TrainingError(f"PPO stopped: {name} is {number}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return norms

    def _clip(self, parameters: Iterator[torch.nn.Parameter]) -> float:
        return float(torch.nn.utils.clip_grad_norm_(parameters, self.settings.grad_clip))


def _add_stats(totals: MinibatchStats, policy: PolicyLoss, value: ValueLoss) -> None:
    """Add a microbatch's share to its minibatch's stats; the extremes are kept as such."""
    sums = {f"policy/{name}": number for name, number in policy._asdict().items()}
    sums |= {f"value/{name}": number for name, number in value._asdict().items()}
    for name, number in sums.items():
        if name in ("policy/ratio_max", "policy/ratio_gap"):
            totals[name] = max(totals[name], float(number.detach()))
        else:
            totals[name] += float(number.detach())
