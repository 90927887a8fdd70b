"""Attention as two batched products: by hand, its gradients, and how heads share keys."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from rlhf_core.models.masked_attention import masked_attention

NEVER = float("-inf")


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def causal(length: int) -> torch.Tensor:
    return torch.full((length, length), NEVER, dtype=torch.float64).triu(1)


def test_two_tokens_worked_by_hand() -> None:
    query, key = torch.tensor([[[[9.0], [1.0]]]]), torch.tensor([[[[0.0], [math.log(3)]]]])
    value = torch.tensor([[[[4.0, 0.0], [0.0, 8.0]]]])
    # The first sees itself alone. The second scores 0 and log 3: a quarter and three quarters.
    attended = masked_attention(query, key, value, torch.tensor([[0.0, NEVER], [0.0, 0.0]]), 1.0)
    torch.testing.assert_close(attended, torch.tensor([[[[4.0, 0.0], [1.0, 6.0]]]]))


@pytest.mark.parametrize(("documents", "heads", "kv_heads"), [(1, 2, 2), (2, 4, 2), (3, 3, 1)])
def test_heads_share_keys_as_torch_lets_them(documents: int, heads: int, kv_heads: int) -> None:
    query, key = numbers(documents, heads, 5, 4, seed=1), numbers(documents, kv_heads, 5, 4, seed=2)
    value = numbers(documents, kv_heads, 5, 3, seed=3)
    expected = scaled_dot_product_attention(query, key, value, is_causal=True, scale=0.3, enable_gqa=True)
    torch.testing.assert_close(masked_attention(query, key, value, causal(5), 0.3), expected)


def test_the_gradients() -> None:
    given = numbers(2, 4, 3, 2, seed=1), numbers(2, 2, 3, 2, seed=2), numbers(2, 2, 3, 3, seed=3)
    assert torch.autograd.gradcheck(lambda q, k, v: masked_attention(q, k, v, causal(3), 0.7), given)
