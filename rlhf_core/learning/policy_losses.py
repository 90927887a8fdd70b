"""What the alternatives to PPO minimise, as pure functions of whole responses: DPO, KTO, RLOO and GRPO.

A log ratio is the logprob of a whole response under the policy less that under the reference, in nats. `kl_coef` is
what the papers call beta: `kl_coef` times a log ratio is the reward that the policy implies, up to a constant per
prompt. Shapes: B responses, pairs or thumbs; R response tokens. Losses are per judgement, so that whoever calls
weighs and averages them over a whole minibatch. Sources: DPO, Rafailov et al. 2305.18290; ties, Rao and Kupper 1967;
KTO, Ethayarajh et al. 2402.01306; RLOO, Ahmadian et al. 2402.14740; GRPO, Shao et al. 2402.03300; its bias, Liu et
al. 2503.20783.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_core.learning.preference_losses import LEFT, TIE, pair_losses

ALIKE = 1e-3
"""Log ratios nearer than this, in nats, order nothing: the order of a sum moves them."""


def sequence_sums(values: Tensor, response_mask: Tensor) -> Tensor:
    """`values` [B, R] summed over the True entries of `response_mask`: of logprobs, the logprob of a response [B]."""
    return torch.where(response_mask, values, torch.zeros_like(values)).sum(-1)


def hits(leads: Tensor) -> Tensor:
    """How many of the log ratios `leads` [B] are ahead of what they should beat, a scalar; those alike count half."""
    return (leads > ALIKE).double().sum() + (leads.abs() <= ALIKE).double().sum() / 2


def dpo_losses(
    chosen_log_ratios: Tensor,
    rejected_log_ratios: Tensor,
    tied: Tensor,
    tie_threshold: Tensor,
    *,
    kl_coef: float,
    label_smoothing: float = 0.0,
    margins: Tensor | None = None,
) -> Tensor:
    """Negative log-likelihood [B] of each comparison under the reward that the policy implies.

    With d = kl_coef (chosen - rejected) and eta = `tie_threshold` >= 0 (a scalar): P(chosen) = sigma(d - eta),
    P(rejected) = sigma(-d - eta), P(tie) = (e^{2 eta} - 1) sigma(d - eta) sigma(-d - eta). `tied` [B] bool says where
    neither was chosen. At eta = 0 nothing can tie and this is DPO. `label_smoothing` is the share of choices taken to
    be slips (cDPO); ties have no opposite and are not smoothed. `margins` [B] are taken off d of a choice: how much
    better the chosen side was said to be.
    """
    d = kl_coef * (chosen_log_ratios - rejected_log_ratios)
    outcomes = torch.where(tied, TIE, LEFT)
    return pair_losses(d, outcomes, tie_threshold, 0.0 if margins is None else margins, label_smoothing)


def neutral_tie_threshold(tie_share: float) -> float:
    """The eta at which equally good responses tie in `tie_share` of comparisons, which lies in [0, 1).

    At d = 0, P(tie) = (e^{2 eta} - 1) / (1 + e^eta)^2 = (e^eta - 1) / (e^eta + 1) = tanh(eta / 2).
    """
    return 2.0 * math.atanh(tie_share)


def kto_losses(
    log_ratios: Tensor, up: Tensor, reference_point: Tensor, *, kl_coef: float, up_weight: float, down_weight: float
) -> Tensor:
    """Loss [B] of each thumb: with z = kl_coef (log ratio - z0),

    up_weight (1 - sigma(z)) where `up` [B] bool, and down_weight (1 - sigma(-z)) elsewhere. `reference_point` z0 is a
    scalar in nats, that of `mismatched_kl`.
    """
    gains = kl_coef * (log_ratios - reference_point)
    return torch.where(up, up_weight * torch.sigmoid(-gains), down_weight * torch.sigmoid(gains))


def mismatched_kl(mismatched_log_ratios: Tensor) -> Tensor:
    """z0, a scalar in nats: max(0, mean log ratio [B] of responses under prompts that they do not answer).

    It estimates how far the policy is from the reference in general, and no gradient passes through it: KTO would
    otherwise make unrelated responses more or less likely as a way to move its own zero.
    """
    return mismatched_log_ratios.detach().mean().clamp_min(0.0)


class ThumbWeights(NamedTuple):
    up: float
    down: float


MOST_UP_WEIGHT = 4 / 3


def balanced_thumb_weights(n_up: float, n_down: float) -> ThumbWeights:
    """The smallest weights, 1 or more, with which (up weight * n_up) / (down weight * n_down) lies in [1, 4/3].

    KTO's recommended range: neither kind of thumb may drown the other. Both counts (or sums of weights) are above zero.
    """
    ratio = n_up / n_down
    if ratio < 1.0:
        return ThumbWeights(1.0 / ratio, 1.0)
    return ThumbWeights(1.0, max(1.0, ratio / MOST_UP_WEIGHT))


def leave_one_out_advantages(rewards: Tensor) -> Tensor:
    """Advantages [G, K] of G groups of K rewards for the same prompt: each less the mean of the K - 1 others.

    The baseline does not depend on the response that it is taken off, so the policy gradient stays unbiased.
    """
    others = rewards.shape[-1] - 1
    return rewards - (rewards.sum(-1, keepdim=True) - rewards) / others


def group_advantages(rewards: Tensor, *, normalise: bool) -> Tensor:
    """GRPO's advantages [G, K]: each reward less the mean of its group; with `normalise` over the group's standard
    deviation (population), which makes easy and hard prompts count alike. Zero where a group's rewards are equal."""
    centred = rewards - rewards.mean(-1, keepdim=True)
    if not normalise:
        return centred
    spread = rewards.std(-1, keepdim=True, correction=0)
    return torch.where(spread > 0, centred / spread, torch.zeros_like(centred))


def telling_groups(rewards: Tensor, floor: float = 1e-3) -> Tensor:
    """[G] bool, True where the rewards [G, K] of a group differ: elsewhere there is nothing to learn.

    A spread below `floor` times that of all rewards is rounding, which dividing by it would blow up.
    """
    return rewards.std(-1, correction=0) > floor * rewards.std(correction=0)
