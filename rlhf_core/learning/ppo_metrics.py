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
from rlhf_core.learning.losses import PolicyLoss, ValueLoss
from rlhf_core.learning.masked import masked_mean, masked_var
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.ppo_stop import STOPS
from rlhf_core.learning.rollouts import Rollouts, measuring_groups, padding_fraction
from rlhf_core.models.allocation import peak_of_process

Metrics = dict[str, float]
MinibatchStats = dict[str, float]
"""What one minibatch measures: LOSS_NAMES, and the norms of its gradient."""

LOSS_NAMES: Final = (
    *(f"policy/{name}" for name in PolicyLoss._fields),
    *(f"value/{name}" for name in ValueLoss._fields),
)
EXTREMES: Final = ("policy/ratio_max", "policy/ratio_gap")
"""Of LOSS_NAMES those that are a largest value and no share of a mean."""

MINIBATCH_MEANS: Final = (
    *(name for name in LOSS_NAMES if name not in EXTREMES),
    "policy/grad_norm",
    "value/grad_norm",
)
"""Entries of METRICS that are averages over the minibatches of an update."""

METRICS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "step": "update, counted from 1",
        "episodes": "responses sampled so far in the cycle",
        "tokens": "their tokens",
        "episodes_per_s": "responses sampled, measured and learned from per second of this update",
        "stopped": "1 when a stop condition ended the cycle before this update learned anything",
        **STOPS,
        "objective/score": "mean score of the responses, as the reward model gave it, weighted axes included",
        "objective/score_std": "standard deviation of the same",
        "objective/shaped_score": "mean score as it enters the reward: clipped, less the penalty for not ending",
        "objective/score_clip_fraction": "share of scores beyond score_clip",
        "objective/rlhf_reward": "mean of shaped score - kl_coef * KL per response: what PPO maximises",
        "objective/non_score_reward": "its second part: - kl_coef * KL per response",
        "objective/kl_seq": "KL to the reference per response (k1)",
        "objective/kl_k3": "the same by the estimator that is never negative (k3)",
        "objective/kl_coef": "weight of the KL penalty",
        "objective/entropy": "mean entropy of the policy per token, exact",
        "objective/missing_end_rate": "share of responses that did not end",
        "objective/response_length": "mean tokens per response, end token included",
        "objective/response_length_p95": "95th percentile of the same",
        "objective/distinct_2": "distinct token pairs over all token pairs of the responses",
        "objective/repetition_4": "share of runs of four tokens that repeat an earlier one of the same response",
        "policy/loss": "clipped surrogate, mean over minibatches",
        "policy/approx_kl": "KL between the policy before the update and now per token (k3), mean over minibatches",
        "policy/approx_kl_k2": "the same, k2",
        "policy/clip_fraction": "share of tokens whose ratio left the clip range",
        "policy/clip_fraction_high": "share of tokens whose ratio is above it",
        "policy/clip_fraction_low": "share of tokens whose ratio is below it",
        "policy/ratio_mean": "mean probability ratio",
        "policy/ratio_max": "largest probability ratio",
        "policy/ratio_first_minibatch": "largest distance from 1 of a ratio before the first step; 0 but for rounding",
        "policy/grad_norm": "gradient norm of the policy before clipping, mean over minibatches",
        "policy/update_norm": "norm of what the last optimizer step changed in the policy's learning weights",
        "policy/weight_norm": "norm of those weights",
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
        "rollout/tokens_per_s": "the same per second of sampling",
        "rollout/staleness": "updates that the policy learned since it sampled these responses",
        "rollout/padding_fraction": "share of the places in the trainer's attention that is padding",
        "rollout/logprob_gap_mean": "mean absolute difference of engine's and trainer's logprobs",
        "rollout/logprob_gap_max": "its largest",
        "rollout/kl_k1": "KL of the engine's distribution from the trainer's per token (k1); 0 but for rounding",
        "rollout/kl_k3": "the same, k3",
        "rollout/importance_clip_fraction": "share of tokens whose importance weight hit the cap",
        "time/rollout": "seconds spent sampling",
        "time/score": "seconds spent scoring",
        "time/measure": "seconds spent on old logprobs, reference and values",
        "time/improve": "seconds spent learning; forward, backward and optimizer are parts of it",
        "time/forward": "seconds in forward passes while learning",
        "time/backward": "seconds in backward passes",
        "time/optimizer": "seconds in clipping and optimizer steps",
        "mem/peak": "largest memory so far in bytes: of the process on a CPU, of its tensors on a GPU",
    }
)
"""Every name in `PPOResult.metrics`, with its meaning."""

OPTIONAL: Final[Mapping[str, str]] = MappingProxyType(
    {
        "objective/kl_to_served": "KL to the policy that people talk to per response, where that was given",
        "objective/judge_score": "mean score of a reward model that is not climbed, where one was given",
        "policy/demonstration_loss": "mean loss per token of the demonstrations mixed in",
        "axis/overall": "mean overall score, where axes are scored",
        "axis/NAME": "mean score of an axis",
        "axis/multiplier": "weight of the floored axis in this update",
        "axis/violation": "floor less the mean of the floored axis; above 0 it is violated",
    }
)
"""Names that appear where what they measure was asked for."""


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
    means = [
        *MINIBATCH_MEANS,
        *(["policy/demonstration_loss"] if steps and "policy/demonstration_loss" in steps[0] else []),
    ]
    metrics = {name: sum(step[name] for step in steps) / max(1, len(steps)) for name in means}
    return metrics | {
        "policy/ratio_max": max((step["policy/ratio_max"] for step in steps), default=0.0),
        "policy/ratio_first_minibatch": steps[0]["policy/ratio_gap"] if steps else 0.0,
        "policy/steps": float(len(steps)),
        "policy/early_stop": float(early_stop),
        "policy/learning_rate": learning_rate,
    }


def no_update() -> Metrics:
    """The learning half of the metrics of an update that learned nothing."""
    names = ("policy/update_norm", "policy/weight_norm", "time/forward", "time/backward", "time/optimizer")
    return update_metrics(()) | dict.fromkeys(names, 0.0)


def distinct_share(responses: Sequence[Sequence[int]]) -> float:
    """Distinct token pairs over all token pairs; falls when a policy repeats itself. 1 when there are no
    pairs."""
    pairs = [pair for tokens in responses for pair in pairwise(tokens)]
    return len(set(pairs)) / len(pairs) if pairs else 1.0


def repetition_share(responses: Sequence[Sequence[int]], run: int = 4) -> float:
    """Share of all runs of `run` tokens that stood earlier in the same response. 0 when there are no runs."""
    total = distinct = 0
    for tokens in responses:
        runs = [tuple(tokens[at : at + run]) for at in range(len(tokens) - run + 1)]
        total += len(runs)
        distinct += len(set(runs))
    return 1.0 - distinct / total if total else 0.0


def peak_memory(device: torch.device) -> float:
    """Bytes; see METRICS."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(peak_of_process())


def _numbers(tensors: Mapping[str, Tensor]) -> Metrics:
    """All in one transfer from where they were computed."""
    return dict(zip(tensors, torch.stack([each.float() for each in tensors.values()]).tolist(), strict=True))


def _objective(rollouts: Rollouts, settings: PPOSettings, kl_coef: float) -> Metrics:
    mask, scores = rollouts.batch.response_mask, rollouts.scores
    kl = estimate_kl(rollouts.logprobs, rollouts.ref_logprobs)
    tensors = {
        "objective/score": scores.mean(),
        "objective/score_std": scores.std(correction=0),
        "objective/shaped_score": rollouts.shaped_scores.mean(),
        "objective/score_clip_fraction": (scores.abs() > settings.score_clip).float().mean(),
        "objective/kl_seq": response_kl(kl.k1, mask),
        "objective/kl_k3": response_kl(kl.k3, mask),
        "objective/entropy": masked_mean(rollouts.entropy, mask),
    }
    if rollouts.served_logprobs is not None:
        to_served = estimate_kl(rollouts.logprobs, rollouts.served_logprobs).k1
        tensors["objective/kl_to_served"] = response_kl(to_served, mask)
    numbers = _numbers(tensors)
    penalty = -kl_coef * numbers["objective/kl_seq"]
    return numbers | {
        "objective/non_score_reward": penalty,
        "objective/rlhf_reward": numbers["objective/shaped_score"] + penalty,
        "objective/kl_coef": kl_coef,
    }


def _responses(rollouts: Rollouts) -> Metrics:
    responses = [one.token_ids for one in rollouts.responses]
    lengths = torch.tensor([len(tokens) for tokens in responses], dtype=torch.float32)
    return {
        "objective/missing_end_rate": sum(not one.ended for one in rollouts.responses) / len(lengths),
        "objective/response_length": float(lengths.mean()),
        "objective/response_length_p95": float(lengths.quantile(0.95)),
        "objective/distinct_2": distinct_share(responses),
        "objective/repetition_4": repetition_share(responses),
        "rollout/tokens": float(lengths.sum()),
        # Sampling and learning alternate: what is learned from was sampled by the policy as it stands.
        "rollout/staleness": 0.0,
    }


def _estimates(rollouts: Rollouts) -> Metrics:
    mask = rollouts.batch.response_mask
    return _numbers(
        {
            "advantage/mean": masked_mean(rollouts.raw_advantages, mask),
            "advantage/std": masked_var(rollouts.raw_advantages, mask).sqrt(),
            "value/explained_variance": explained_variance(rollouts.values, rollouts.returns, mask),
            "value/mean": masked_mean(rollouts.values, mask),
            "value/return_mean": masked_mean(rollouts.returns, mask),
        }
    )


def _agreement(rollouts: Rollouts, settings: PPOSettings) -> Metrics:
    mask = rollouts.batch.response_mask
    gap: Tensor = (rollouts.logprobs - rollouts.sampled_logprobs).abs()
    apart = estimate_kl(rollouts.sampled_logprobs, rollouts.logprobs)
    capped = (rollouts.weights >= settings.importance_cap).to(gap.dtype)
    return {
        "rollout/padding_fraction": padding_fraction(rollouts.lengths, measuring_groups(rollouts.lengths, settings)),
        **_numbers(
            {
                "rollout/logprob_gap_mean": masked_mean(gap, mask),
                "rollout/logprob_gap_max": gap.max(),
                "rollout/kl_k1": masked_mean(apart.k1, mask),
                "rollout/kl_k3": masked_mean(apart.k3, mask),
                "rollout/importance_clip_fraction": masked_mean(capped, mask),
            }
        ),
    }
