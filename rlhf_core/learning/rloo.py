"""Policy gradient without a critic: several responses to a prompt are each other's baseline. RLOO, and GRPO.

Contract: the trainee's weights are trained in place, and sampled from in place; its reference is never touched. The
settings choose the baseline, what a ratio is taken of, and where the KL goes: `RLOOSettings()` is REINFORCE
leave-one-out (Ahmadian et al. 2402.14740), `GRPO` is group relative policy optimisation (Shao et al. 2402.03300).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rlhf_core.learning.alternatives_settings import RLOOSettings
from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.answer_logprobs import microbatches
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.fresh_responses import Drawn, FreshResponses, Source, run_updates
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.kl import estimate_kl
from rlhf_core.learning.losses import PolicyLoss, ppo_policy_loss
from rlhf_core.learning.policy_losses import (
    group_advantages,
    leave_one_out_advantages,
    sequence_sums,
    telling_groups,
)
from rlhf_core.learning.policy_steps import PolicySteps, alone, linear_share
from rlhf_core.learning.ppo import ScoreFunction
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import TokenIds

EARLY_STOP = 1.5
"""The epochs of an update end when approx_kl exceeds this many times `target_kl`."""
SUMS = ("policy/loss", "policy/kl_loss", "policy/approx_kl", "policy/clip_fraction", "policy/ratio_mean")
MAXIMA = ("policy/ratio_max", "policy/ratio_gap")


def train_rloo(
    trainee: Trainable,
    score_fn: ScoreFunction,
    prompts: Sequence[TokenIds],
    settings: RLOOSettings,
    seed: int,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
) -> list[Metrics]:
    """Train for `settings.updates` rounds of sampling and learning, and return the metrics of every update.

    `prompts` are token ids up to where the response begins; each update takes the next of them, shuffled anew whenever
    they run out. The same arguments give the same weights and metrics, times aside. Fewer updates when the KL budget
    ends the training. Raises TrainingError when there is no prompt, or a number is not finite.
    """
    hooks, devices = hooks or Hooks(), devices or alone(trainee)
    source = Source(trainee, score_fn, prompts, settings, seed, devices)
    learner = GroupLearner(settings, PolicySteps(trainee, settings, devices), seed)

    def draw(update: int) -> FreshResponses:
        drawn = source.draw(update, settings.group_size)
        rows = rows_that_tell(drawn.shaped_scores, settings)
        first = cut(rows, settings.minibatch_size)
        return source.read(drawn, [*first, *cut(left_out(rows, drawn), settings.minibatch_size)])

    def learn(fresh: FreshResponses, update: int) -> Metrics:
        return learner.improve(fresh, rows_that_tell(fresh.drawn.shaped_scores, settings), update)

    return run_updates(learner.steps, settings, hooks, draw, learn)


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """What an update learns from, padded to [B, R] tokens."""

    batch: TokenBatch
    lengths: list[int]
    """Tokens of each prompt with its response."""
    logprobs: Tensor
    """[B, R], the trainer's, before the update."""
    ref_logprobs: Tensor
    """[B, R]."""
    sampled_logprobs: Tensor
    """[B, R], the engine's."""
    advantages: Tensor
    """[B]."""


@dataclass(slots=True, eq=False)
class GroupLearner:
    """Steps of a policy along the clipped policy gradient of groups of responses."""

    settings: RLOOSettings
    steps: PolicySteps
    seed: int

    def improve(self, fresh: FreshResponses, chosen: Sequence[int], update: int) -> Metrics:
        """Learn from the responses `chosen` of update number `update`, counted from 0."""
        advantages = baseline_advantages(shaped_rewards(fresh, self.settings), self.settings).flatten()
        kl_cost = self.settings.kl_coef * fresh.kl_seq
        known = {
            "objective/rlhf_reward": float(fresh.drawn.shaped_scores.mean()) - kl_cost,
            "advantage/std": float(advantages.std(correction=0)),
            "rollout/telling_share": len(chosen) / len(advantages),
        }
        if not chosen:
            return known | mean_stats([], early_stop=False)
        return known | self._epochs(self._rows(fresh, chosen, advantages[list(chosen)]), update)

    def _epochs(self, rows: Rows, update: int) -> Metrics:
        """The first epoch takes the rows as they come, which is how they were read: its first ratios are 1."""
        shuffler = random.Random(f"{self.seed} {update}")
        share = linear_share(update, self.settings.updates, self.settings.warmup_share)
        done = list[Metrics]()
        for epoch in range(self.settings.epochs):
            order = range(len(rows.lengths))
            shuffled = order if epoch == 0 else shuffler.sample(order, len(order))
            for minibatch in cut(shuffled, self.settings.minibatch_size):
                stats = self.accumulate(rows, minibatch)
                if stats["policy/approx_kl"] > EARLY_STOP * self.settings.target_kl:
                    self.steps.forget()
                    return mean_stats(done, early_stop=True)
                done.append(stats | self.steps.step(share, stats))
        return mean_stats(done, early_stop=False)

    def accumulate(self, rows: Rows, minibatch: Sequence[int]) -> Metrics:
        """Add the gradient of one minibatch's loss to the parameters; `minibatch` holds rows of `rows`."""
        devices = self.steps.devices
        counts = int(rows.batch.response_mask[list(minibatch)].sum()), len(minibatch)
        totals = dict.fromkeys((*SUMS, *MAXIMA), 0.0)
        for group in microbatches(rows.lengths, minibatch, self.settings.microbatch_tokens, devices):
            stats = self._backward(rows, torch.tensor(group, device=rows.batch.input_ids.device), *counts)
            totals = {
                name: max(total, stats[name]) if name in MAXIMA else total + stats[name]
                for name, total in totals.items()
            }
        return devices.sum_numbers(totals, largest=MAXIMA)

    def _backward(self, rows: Rows, index: Tensor, tokens: int, responses: int) -> Metrics:
        """Add the gradient of the rows `index` [b], a share of a minibatch of so many tokens and responses."""
        batch = rows.batch.rows(index)
        mask, width = batch.response_mask, batch.response_mask.shape[1]
        with self.steps.devices.autocast():
            now = analyse(self.steps.trainee.model, batch, temperature=self.settings.temperature)
        logprobs, old = now.logprobs.float(), rows.logprobs[index, :width]
        surrogate = self._surrogate(rows, index, logprobs, mask, tokens, responses)
        by_token = self.settings.ratio == "token"
        loss, kl_loss = surrogate.loss, torch.zeros_like(surrogate.loss)
        if self.settings.kl_in == "loss":
            k2 = sequence_sums(estimate_kl(logprobs, rows.ref_logprobs[index, :width]).k2, mask).sum()
            kl_loss = k2 / (tokens if by_token else responses)
            loss = loss + self.settings.kl_coef * kl_loss
        torch.autograd.backward(loss)
        drift = torch.where(mask, (logprobs - old).detach(), torch.zeros_like(old))
        return {
            "policy/loss": float(loss.detach()),
            "policy/kl_loss": float(kl_loss.detach()),
            "policy/approx_kl": float((torch.expm1(drift) - drift).sum()) / tokens,
            "policy/clip_fraction": float(surrogate.clip_fraction),
            "policy/ratio_mean": float(surrogate.ratio_mean),
            "policy/ratio_max": float(surrogate.ratio_max),
            "policy/ratio_gap": float(surrogate.ratio_gap),
        }

    def _surrogate(
        self, rows: Rows, index: Tensor, logprobs: Tensor, mask: Tensor, tokens: int, responses: int
    ) -> PolicyLoss:
        """PPO's clipped surrogate of tokens, or of whole responses, each of which is then one action."""
        old, sampled = (each[index, : mask.shape[1]] for each in (rows.logprobs, rows.sampled_logprobs))
        advantages, actions, count = rows.advantages[index, None].expand_as(old), mask, tokens
        if self.settings.ratio == "response":
            logprobs, old, sampled = (sequence_sums(each, mask)[:, None] for each in (logprobs, old, sampled))
            advantages, actions, count = rows.advantages[index, None], torch.ones_like(old).bool(), responses
        return ppo_policy_loss(
            logprobs,
            old,
            advantages,
            actions,
            clip_range=self.settings.clip_range,
            clip_range_high=self.settings.clip_range_high,
            tokens=count,
            weights=torch.exp(old - sampled).clamp_max(self.settings.importance_cap),
        )

    def _rows(self, fresh: FreshResponses, chosen: Sequence[int], advantages: Tensor) -> Rows:
        device = self.steps.trainee.model.device

        def padded(values: Sequence[Tensor]) -> Tensor:
            return nn.utils.rnn.pad_sequence(list(values), batch_first=True).to(device)

        return Rows(
            TokenBatch.of([fresh.drawn.answers[row] for row in chosen], device),
            [fresh.drawn.responses[row].length for row in chosen],
            padded([fresh.read[row].logprobs for row in chosen]),
            padded([fresh.ref_logprobs[row] for row in chosen]),
            padded([torch.tensor(fresh.drawn.responses[row].logprobs) for row in chosen]),
            advantages.to(device),
        )


def rows_that_tell(shaped_scores: Tensor, settings: RLOOSettings) -> list[int]:
    """Rows of the responses to learn from. Where a group's spread is divided by, groups without one are skipped; else
    equal scores already have advantages of 0, and the rest of a group (its KL) still counts."""
    if settings.baseline != "group_normalised":
        return list(range(len(shaped_scores)))
    telling = telling_groups(shaped_scores.view(-1, settings.group_size))
    return [row for row in range(len(shaped_scores)) if telling[row // settings.group_size]]


def left_out(rows: Sequence[int], drawn: Drawn) -> list[int]:
    kept = set(rows)
    return [row for row in range(len(drawn.responses)) if row not in kept]


def cut(rows: Sequence[int], size: int) -> list[Sequence[int]]:
    """Minibatches of at most `size` rows, in order."""
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def shaped_rewards(fresh: FreshResponses, settings: RLOOSettings) -> Tensor:
    """What each response earned [G, K]: its shaped score, less kl_coef times its KL (k1) where the KL goes there."""
    rewards = fresh.drawn.shaped_scores
    if settings.kl_in == "score":
        rewards = rewards - settings.kl_coef * fresh.response_kl
    return rewards.view(-1, settings.group_size)


def baseline_advantages(rewards: Tensor, settings: RLOOSettings) -> Tensor:
    """[G, K], by the settings' baseline."""
    if settings.baseline == "leave_one_out":
        return leave_one_out_advantages(rewards)
    return group_advantages(rewards, normalise=settings.baseline == "group_normalised")


def mean_stats(minibatches: Sequence[Metrics], *, early_stop: bool) -> Metrics:
    """Averages of what the minibatches of an update measured; zeros when there were none."""
    names = (*SUMS, "policy/grad_norm", "policy/learning_rate")
    metrics = {name: sum(each[name] for each in minibatches) / max(1, len(minibatches)) for name in names}
    return metrics | {
        "policy/ratio_max": max((each["policy/ratio_max"] for each in minibatches), default=0.0),
        "policy/ratio_first_minibatch": minibatches[0]["policy/ratio_gap"] if minibatches else 0.0,
        "policy/steps": float(len(minibatches)),
        "policy/early_stop": float(early_stop),
    }
