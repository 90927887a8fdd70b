"""From one score per response to one advantage per token. Pure functions of tensors; B responses, R response
tokens.

A response's mask is True from its first token to its last; the last counted token is the end token where the
policy emitted one, and otherwise simply the last drawn. Ending is an action like any other, and the value
after it is 0.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from rlhf_core.learning.kl import estimate_kl
from rlhf_core.learning.masked import masked_mean, masked_var, masked_whiten

MissingEnd = Literal["subtract", "replace"]


class Advantages(NamedTuple):
    """Both [B, R], zero outside the mask."""

    advantages: Tensor
    """As GAE gives them, not whitened."""
    returns: Tensor
    """What the value head is fitted to: advantages + values."""


def shape_scores(
    scores: Tensor,
    ended: Tensor,
    *,
    score_clip: float,
    missing_end_penalty: float,
    missing_end: MissingEnd = "subtract",
) -> Tensor:
    """`scores` [B] clipped to +-`score_clip`; where `ended` [B] is False less the penalty, or replaced by minus it.

    The penalty comes after the clip, so that a response far below the clip still loses by not ending. Replacing is
    OpenAI's way: what a cut-off response says then counts for nothing.
    """
    clipped = scores.clamp(-score_clip, score_clip)
    unended = -missing_end_penalty + (clipped if missing_end == "subtract" else torch.zeros_like(clipped))
    return torch.where(ended, clipped, unended)


def token_rewards(
    scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, response_mask: Tensor, *, kl_coef: float
) -> Tensor:
    """Rewards [B, R]: -kl_coef * k1 at each token, plus the score [B] at the last counted one; no gradient.

    They sum to score - kl_coef * KL per response. Only k1 belongs here (see `kl.py`).
    """
    penalty = -kl_coef * estimate_kl(logprobs.detach(), ref_logprobs.detach()).k1
    rewards = torch.where(response_mask, penalty, torch.zeros_like(penalty))
    last = response_mask.sum(-1, keepdim=True) - 1
    return rewards.scatter_add(-1, last, scores.detach().to(rewards.dtype).unsqueeze(-1))


def whiten_rewards(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """`rewards` [B, R] with unit variance and the mean that they had (shift_mean=False); zero outside the mask.

    A shifted mean would pay for, or fine, mere length.
    """
    return masked_whiten(rewards, response_mask, shift_mean=False)


def gae(rewards: Tensor, values: Tensor, response_mask: Tensor, *, gamma: float, gae_lambda: float) -> Advantages:
    """Generalised advantage estimation (Schulman et al. 2016) over [B, R] tensors, masked, backwards in time.

    delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1}, with V and A zero after the
    last token.
    """
    zeros = torch.zeros_like(rewards)
    rewards, values = torch.where(response_mask, rewards, zeros), torch.where(response_mask, values, zeros)
    advantages = zeros.clone()
    next_value = next_advantage = zeros[:, 0]
    for t in range(rewards.shape[1] - 1, -1, -1):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = delta + gamma * gae_lambda * next_advantage
        next_value = values[:, t]
        advantages[:, t] = next_advantage
    return Advantages(advantages, advantages + values)


def whiten_advantages(advantages: Tensor, response_mask: Tensor, *, floor: float = 1e-3) -> Tensor:
    """`advantages` [B, R] less their mean, over their standard deviation but at least `floor`; zero outside
    the mask.

    The floor matters when every response is as good as any other: without it the value head's rounding errors
    would be blown up to unit variance and the policy would wander. Scores have unit variance, so 1e-3 is far
    below any real difference.
    """
    centred = advantages - masked_mean(advantages, response_mask)
    spread = masked_var(advantages, response_mask).sqrt().clamp_min(floor)
    return torch.where(response_mask, centred / spread, torch.zeros_like(advantages))


def explained_variance(values: Tensor, returns: Tensor, response_mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over counted tokens, a scalar: 1 is a perfect value head, 0 no
    better than a constant.

    0 when every return is the same, since then there is nothing to explain.
    """
    spread = masked_var(returns, response_mask)
    explained = 1.0 - masked_var(returns - values, response_mask) / spread
    return torch.where(spread > 0, explained, torch.zeros_like(explained))
