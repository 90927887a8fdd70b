"""KL divergence between two policies, estimated from the tokens one of them drew (Schulman, "Approximating
KL", k1, k2, k3).

All three take logprobs of the same tokens, drawn from the first policy, and estimate KL(policy || reference)
per token in nats. k1 is unbiased and is the only one that may enter the reward. k3 is unbiased too, and never
negative, so it reads well on a chart; put into the reward, its expected gradient points at a different and
unbounded objective. k2 is biased and small.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class KLEstimates(NamedTuple):
    """Per-token estimates [B, R] in nats."""

    k1: Tensor
    """log p - log q: unbiased, either sign."""
    k2: Tensor
    """(log p - log q)^2 / 2: biased, never negative."""
    k3: Tensor
    """q/p - 1 - log(q/p): unbiased, never negative."""


def estimate_kl(logprobs: Tensor, ref_logprobs: Tensor) -> KLEstimates:
    """The three estimates of KL(policy || reference) from `logprobs` and `ref_logprobs` [B, R] of the
    policy's own tokens."""
    log_ratio = logprobs - ref_logprobs
    return KLEstimates(log_ratio, log_ratio.square() / 2, torch.expm1(-log_ratio) + log_ratio)


def response_kl(token_kl: Tensor, response_mask: Tensor) -> Tensor:
    """KL per response, a scalar in nats: `token_kl` [B, R] summed over counted tokens, then averaged over
    responses."""
    return torch.where(response_mask, token_kl, torch.zeros_like(token_kl)).sum(-1).mean()


def adapt_kl_coef(kl_coef: float, ref_kl: float, *, target: float, episodes: int, horizon: float) -> float:
    """The next `kl_coef` after `episodes` responses whose KL to the reference was `ref_kl` nats per response.

    Proportional control, the error clipped to +-0.2 so that one odd update cannot swing it (Ziegler et al.
    2019, section 2.2). An update of more episodes than the horizon counts as one of that many.
    """
    error = min(max(ref_kl / target - 1.0, -0.2), 0.2)
    return kl_coef * (1.0 + error * min(1.0, episodes / horizon))
