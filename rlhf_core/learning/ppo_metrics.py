"""What one PPO update reports, by name. All token averages are over counted tokens; nats throughout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor

from rlhf_core.learning.advantages import explained_variance
from rlhf_core.learning.kl import estimate_kl, response_kl
from rlhf_core.learning.masked import masked_mean, masked_var
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.rollouts import Rollouts, padding_fraction, plan_microbatches

Metrics = dict[str, float]
MinibatchStats = dict[str, float]
"""What one minibatch measures: MINIBATCH_MEANS, `policy/ratio_max` and `policy/ratio_gap`."""

MINIBATCH_MEANS: Final = (
    "policy/loss",
    "policy/approx_kl",
    "policy/approx_kl_k2",
    "policy/clip_fraction",
    "policy/ratio_mean",
    "policy/grad_norm",
    "value/loss",
    "value/clip_fraction",
    "value/grad_norm",
)
"""Entries of METRICS that are averages over the minibatches of an update."""

METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "update": "update, counted from 1",
        "stopped": "1 when the KL budget ended the cycle before this update learned anything",
        "objective/score": "mean score of the responses, as the reward model gave it",
        "objective/score_std": "standard deviation of the same",
        "objective/score_clip_fraction": "share of scores beyond score_clip",
        "objective/rlhf_reward": "mean of shaped score - kl_coef * KL per response: what PPO maximises",
        "objective/kl_seq": "KL to the reference per response (k1)",
        "objective/kl_k3": "the same by the estimator that is never negative (k3)",
        "objective/kl_coef": "weight of the KL penalty",
        "objective/entropy": "mean entropy of the policy per token, exact",
        "objective/missing_end_rate": "share of responses that did not end",
        "objective/response_length": "mean tokens per response, end token included",
        "objective/response_length_p95": "95th percentile of the same",
        "objective/distinct_2": "distinct token pairs over all token pairs of the responses",
        "policy/loss": "clipped surrogate, mean over minibatches",
        "policy/approx_kl": "KL between the policy before the update and now per token (k3), mean over minibatches",
        "policy/approx_kl_k2": "the same, k2",
        "policy/clip_fraction": "share of tokens whose ratio left the clip range",
        "policy/ratio_mean": "mean probability ratio",
        "policy/ratio_max": "largest probability ratio",
        "policy/ratio_first_minibatch": "largest distance from 1 of a ratio before the first step; 0 but for rounding",
        "policy/grad_norm": "gradient norm of the policy before clipping, mean over minibatches",
        "policy/learning_rate": "AdamW's for the policy in this update",
        "policy/steps": "optimizer steps taken",
        "policy/early_stop": "1 when approx_kl ended the epochs early",
        "value/loss": "half the squared error, clipped, mean over minibatches",
        "value/clip_fraction": "share of tokens where the clipped value decided the loss",
        "value/explained_variance": "1 - Var(return - value) / Var(return), before the update",
        "value/mean": "mean value before the update",
        "value/return_mean": "mean return",
        "value/grad_norm": "gradient norm of the value head before clipping, mean over minibatches",
        "advantage/mean": "mean advantage before whitening",
        "advantage/std": "its standard deviation",
        "rollout/tokens": "response tokens sampled",
        "rollout/padding_fraction": "share of the trainer's tokens that is padding",
        "rollout/logprob_gap_mean": "mean absolute difference of engine's and trainer's logprobs",
        "rollout/logprob_gap_max": "its largest",
        "rollout/importance_clip_fraction": "share of tokens whose importance weight hit the cap",
        "time/sample": "seconds spent sampling",
        "time/score": "seconds spent scoring",
        "time/measure": "seconds spent on old logprobs, reference and values",
        "time/improve": "seconds spent on forward, backward and optimizer",
    }
)
"""Every name in `PPOResult.metrics`, with its meaning."""


def rollout_metrics(rollouts: Rollouts, settings: PPOSettings, kl_coef: float) -> Metrics:
    """What is known before the update: objective, advantages, values and the agreement of engine and
    trainer."""
    return (
        _objective(rollouts, settings, kl_coef)
        | _responses(rollouts)
        | _estimates(rollouts)
        | _agreement(rollouts, settings)
    )


def update_metrics(steps: Sequence[MinibatchStats], *, learning_rate: float = 0.0, early_stop: bool = False) -> Metrics:
    """Averages of what the minibatches measured; zeros when there were none."""
    metrics = {name: sum(step[name] for step in steps) / max(1, len(steps)) for name in MINIBATCH_MEANS}
    return metrics | {
        "policy/ratio_max": max((step["policy/ratio_max"] for step in steps), default=0.0),
        "policy/ratio_first_minibatch": steps[0]["policy/ratio_gap"] if steps else 0.0,
        "policy/steps": float(len(steps)),
        "policy/early_stop": float(early_stop),
        "policy/learning_rate": learning_rate,
    }


def distinct_share(responses: Sequence[Sequence[int]]) -> float:
    """Distinct token pairs over all token pairs; falls when a policy repeats itself. 1 when there are no
    pairs."""
    pairs = [pair for tokens in responses for pair in pairwise(tokens)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def _objective(rollouts: Rollouts, settings: PPOSettings, kl_coef: float) -> Metrics:
    mask = rollouts.batch.response_mask
    kl = estimate_kl(rollouts.logprobs, rollouts.ref_logprobs)
    kl_seq = float(response_kl(kl.k1, mask))
    return {
        "objective/score": float(rollouts.scores.mean()),
        "objective/score_std": float(rollouts.scores.std(correction=0)),
        "objective/score_clip_fraction": float((rollouts.scores.abs() > settings.score_clip).float().mean()),
        "objective/rlhf_reward": float(rollouts.shaped_scores.mean()) - kl_coef * kl_seq,
        "objective/kl_seq": kl_seq,
        "objective/kl_k3": float(response_kl(kl.k3, mask)),
        "objective/kl_coef": kl_coef,
        "objective/entropy": float(masked_mean(rollouts.entropy, mask)),
    }


def _responses(rollouts: Rollouts) -> Metrics:
    lengths = torch.tensor([len(one.token_ids) for one in rollouts.responses], dtype=torch.float32)
    return {
        "objective/missing_end_rate": sum(not one.ended for one in rollouts.responses) / len(lengths),
        "objective/response_length": float(lengths.mean()),
        "objective/response_length_p95": float(lengths.quantile(0.95)),
        "objective/distinct_2": distinct_share([one.token_ids for one in rollouts.responses]),
        "rollout/tokens": float(lengths.sum()),
    }


def _estimates(rollouts: Rollouts) -> Metrics:
    mask = rollouts.batch.response_mask
    return {
        "advantage/mean": float(masked_mean(rollouts.raw_advantages, mask)),
        "advantage/std": float(masked_var(rollouts.raw_advantages, mask).sqrt()),
        "value/explained_variance": float(explained_variance(rollouts.values, rollouts.returns, mask)),
        "value/mean": float(masked_mean(rollouts.values, mask)),
        "value/return_mean": float(masked_mean(rollouts.returns, mask)),
    }


def _agreement(rollouts: Rollouts, settings: PPOSettings) -> Metrics:
    mask = rollouts.batch.response_mask
    gap: Tensor = (rollouts.logprobs - rollouts.sampled_logprobs).abs()
    capped = (rollouts.weights >= settings.importance_cap).to(gap.dtype)
    groups = plan_microbatches(rollouts.lengths, range(len(rollouts.lengths)), settings.microbatch_tokens)
    return {
        "rollout/padding_fraction": padding_fraction(rollouts.lengths, groups),
        "rollout/logprob_gap_mean": float(masked_mean(gap, mask)),
        "rollout/logprob_gap_max": float(gap.max()),
        "rollout/importance_clip_fraction": float(masked_mean(capped, mask)),
    }
