"""The value head: where it begins, and in what precision it answers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import OPTConfig, OPTForCausalLM

from rlhf_core.models.heads import AnswerBatch, RewardModel
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


def test_a_head_is_as_wide_as_what_the_language_model_head_reads(tmp_path: Path) -> None:
    # As opt-350m: layers of 32, embeddings and output of 16.
    config = OPTConfig(
        vocab_size=64,
        hidden_size=32,
        word_embed_proj_dim=16,
        ffn_dim=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
    )
    model = OPTForCausalLM(config)
    states = model.base_model(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state
    assert ValueHead.of(model)(states).shape == (1, 3)
    reward = RewardModel(model.base_model)
    assert reward.features(AnswerBatch.of([((5, 6), (7, 8))], model.device)).shape == (1, 32)
