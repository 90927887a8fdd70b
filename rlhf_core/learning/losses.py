"""What PPO minimises, as pure functions of tensors: logprobs and entropy of a categorical policy, policy
loss, value loss.

Losses are sums over counted tokens divided by `tokens`, the number of counted tokens in the whole minibatch:
microbatches then add up to exactly the minibatch's gradient, however it was cut. Shapes: B responses, R
response tokens, V vocabulary.
"""

from typing import Any, Final, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

ENTROPY_ROWS: Final = 64
"""Tokens whose entropy is summed at a time."""


class PolicyLoss(NamedTuple):
    """Scalars. All but the two extremes are sums divided by `tokens`, so those of the microbatches of a
    minibatch add up."""

    loss: Tensor
    approx_kl: Tensor
    """KL of the policy before the update from the policy now, k3 form, nats per token."""
    approx_kl_k2: Tensor
    clip_fraction: Tensor
    """Share of tokens whose probability ratio left the clip range, either side."""
    clip_fraction_high: Tensor
    clip_fraction_low: Tensor
    ratio_mean: Tensor
    ratio_max: Tensor
    ratio_gap: Tensor
    """Largest distance of a ratio from 1."""


class ValueLoss(NamedTuple):
    """Scalars, summed and divided as in `PolicyLoss`."""

    loss: Tensor
    clip_fraction: Tensor
    """Share of tokens where the clipped value decided the loss."""


def token_logprobs(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log-softmax(logits / temperature) [N] at `token_ids` [N], from `logits` [N, V], in float32 or wider."""
    logprobs: Tensor
    logprobs, _ = _Chosen.apply(logits, token_ids, temperature, False)
    return logprobs


def token_logprobs_and_entropy(logits: Tensor, token_ids: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """`token_logprobs` and `token_entropy`, the second without a gradient, for little more than the first alone."""
    logprobs, entropy = _Chosen.apply(logits, token_ids, temperature, True)
    return logprobs, entropy


class _Chosen(torch.autograd.Function):
    """Logprobs of chosen tokens, and entropy on request, with one tensor of the size of the logits kept.

    With p = softmax(z / T): d log p_i / d z_j = ([i = j] - p_j) / T.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, token_ids: Tensor, temperature: float, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        every = functional.log_softmax(_scaled(logits, temperature), dim=-1)
        ctx.save_for_backward(every, token_ids)
        ctx.temperature, ctx.dtype = temperature, logits.dtype
        chosen = every.gather(-1, token_ids[:, None])[:, 0]
        entropy = torch.zeros_like(chosen)
        if with_entropy:
            # A few rows at a time: this stands at the height of a pass, when all else is kept for the gradient.
            for rows, into in zip(every.split(ENTROPY_ROWS), entropy.split(ENTROPY_ROWS), strict=True):
                into.copy_(rows.exp().mul_(rows).sum(-1)).neg_()
        ctx.mark_non_differentiable(entropy)
        return chosen, entropy

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        every, token_ids = ctx.saved_tensors
        each = gradient[:, None] / ctx.temperature
        to_logits = every.exp().mul_(-each).scatter_add_(-1, token_ids[:, None], each)
        return to_logits.to(ctx.dtype), None, None, None


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Entropy in nats [N] of softmax(logits / temperature), from `logits` [N, V]: exact, not an average of
    -logprob."""
    logprobs = functional.log_softmax(_scaled(logits, temperature), dim=-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def ppo_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    *,
    clip_range: float,
    clip_range_high: float | None = None,
    dual_clip: float | None = None,
    tokens: int | None = None,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """Clipped surrogate (Schulman et al. 2017, equation 7), negated, over [B, R] tensors.

    `old_logprobs` are those before the update; `clip_range_high` is the range above 1 where it differs (clip-higher, Yu
    et al. 2025); with `dual_clip` c, a token of negative advantage costs at most c times it (Ye et al. 2020); `weights`
    [B, R] correct for a sampler that differs slightly from the trainer (1 when None); `tokens` defaults to the number
    of True entries of `response_mask`. Stats carry no gradient.
    """
    log_ratio = torch.where(response_mask, logprobs - old_logprobs, torch.zeros_like(logprobs))
    ratio = log_ratio.exp()
    low, high = 1.0 - clip_range, 1.0 + (clip_range if clip_range_high is None else clip_range_high)
    losses = torch.maximum(-advantages * ratio, -advantages * ratio.clamp(low, high))
    if dual_clip is not None:
        losses = torch.where(advantages < 0, torch.minimum(losses, -advantages * dual_clip), losses)
    if weights is not None:
        losses = losses * weights
    drift, moved = log_ratio.detach(), ratio.detach()
    above, below = (moved > high).to(moved.dtype), (moved < low).to(moved.dtype)
    return PolicyLoss(
        loss=token_mean(losses, response_mask, tokens),
        approx_kl=token_mean(torch.expm1(drift) - drift, response_mask, tokens),
        approx_kl_k2=token_mean(drift.square() / 2, response_mask, tokens),
        clip_fraction=token_mean(above + below, response_mask, tokens),
        clip_fraction_high=token_mean(above, response_mask, tokens),
        clip_fraction_low=token_mean(below, response_mask, tokens),
        ratio_mean=token_mean(moved, response_mask, tokens),
        ratio_max=torch.where(response_mask, moved, torch.zeros_like(moved)).max(),
        ratio_gap=torch.where(response_mask, (moved - 1.0).abs(), torch.zeros_like(moved)).max(),
    )


def ppo_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    *,
    clip_range: float,
    tokens: int | None = None,
) -> ValueLoss:
    """Half the squared error of `values` against `returns`, all [B, R], pessimistic about moves beyond
    `clip_range`.

    The larger of the plain and the clipped error counts, so a value gains nothing by moving further than
    `clip_range` from `old_values` in one update. In the units of the score, which is normalised to unit
    variance.
    """
    plain = (values - returns).square()
    near = old_values + (values - old_values).clamp(-clip_range, clip_range)
    clipped = (near - returns).square()
    decided = (clipped > plain).detach().to(values.dtype)
    return ValueLoss(
        loss=0.5 * token_mean(torch.maximum(plain, clipped), response_mask, tokens),
        clip_fraction=token_mean(decided, response_mask, tokens),
    )


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    """Logits as the sampler saw them. Ratios are wrong wherever sampler and trainer divide by different
    temperatures."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return wide if temperature == 1.0 else wide / temperature


def token_mean(values: Tensor, response_mask: Tensor, tokens: int | None = None) -> Tensor:
    """Sum over True entries divided by `tokens`; entries outside the mask may be anything, NaN included."""
    total = torch.where(response_mask, values, torch.zeros_like(values)).sum()
    return total / (int(response_mask.sum()) if tokens is None else tokens)
