"""The value head: where it begins, and in what precision it answers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.value import ValueHead


def test_a_head_begins_at_zero_or_as_a_reward_models_head_of_the_same_width(tiny_policy: LoadedPolicy) -> None:
    hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    assert ValueHead.of(tiny_policy.model)(hidden).tolist() == [0.0] * 5
    start = nn.Linear(32, 1)
    torch.testing.assert_close(ValueHead.of(tiny_policy.model, start)(hidden), start(hidden)[:, 0])
    # One that reads two states at once cannot be read from one.
    assert ValueHead.of(tiny_policy.model, nn.Linear(64, 1))(hidden).tolist() == [0.0] * 5


def test_values_keep_their_digits_under_autocast() -> None:
    head = ValueHead(4)
    with torch.no_grad():
        head.linear.bias.fill_(1.001)
    with torch.autocast("cpu", torch.bfloat16):
        values = head(torch.zeros(2, 4, dtype=torch.bfloat16))
    assert values.dtype == torch.float32
    # bfloat16 would say 1.0.
    assert values.tolist() == pytest.approx([1.001, 1.001], abs=1e-6)
