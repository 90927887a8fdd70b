"""Means, variances and whitening over the tokens that count.

Every mask here is a `response_mask`: True means the token counts. A mask that selects nothing has no mean, so it
is refused rather than answered with a zero that would look like a measurement.
"""

import torch
from torch import Tensor

WHITEN_EPSILON = 1e-8


def masked_mean(values: Tensor, response_mask: Tensor) -> Tensor:
    """Mean of `values` [B, R] over the True entries of `response_mask` [B, R], a scalar.

    Values outside the mask may be anything, NaN included: they are replaced before the sum, not multiplied by zero.
    Raises ValueError when the mask selects nothing or the shapes differ.
    """
    count = _count(values, response_mask)
    return torch.where(response_mask, values, torch.zeros_like(values)).sum() / count


def masked_var(values: Tensor, response_mask: Tensor) -> Tensor:
    """Population variance (divided by n, not n - 1) of `values` [B, R] over the True entries, a scalar."""
    return masked_mean((values - masked_mean(values, response_mask)).square(), response_mask)


def masked_whiten(values: Tensor, response_mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`values` [B, R] scaled to unit population variance over the True entries; zero elsewhere.

    With `shift_mean` the result has mean zero: what advantages want. Without it the original mean is kept and
    only the spread around it is scaled: what rewards want, because a shifted reward would pay for, or fine, mere
    length.
    """
    mean = masked_mean(values, response_mask)
    whitened = (values - mean) * torch.rsqrt(masked_var(values, response_mask) + WHITEN_EPSILON)
    if not shift_mean:
        whitened = whitened + mean
    return torch.where(response_mask, whitened, torch.zeros_like(values))


def _count(values: Tensor, response_mask: Tensor) -> Tensor:
    if values.shape != response_mask.shape:
        raise ValueError(f"values {tuple(values.shape)} and mask {tuple(response_mask.shape)} differ in shape")
    if response_mask.dtype != torch.bool:
        raise ValueError(f"a response mask is boolean, not {response_mask.dtype}")
    count = response_mask.sum()
    if count == 0:
        raise ValueError(f"the mask {tuple(response_mask.shape)} selects no token")
    return count
