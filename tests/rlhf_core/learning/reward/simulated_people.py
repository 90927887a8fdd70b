"""A tiny policy, and people who judge responses by the worth of their tokens: for tests of whole fits."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_core.records import PreferencePair, RatedResponse

WORTH = {10 + at: -1.5 + at * 3.0 / 7 for at in range(8)}
"""A response of the simulated people is worth the sum of its tokens' worth, tokens 10 to 17."""


def make_trunk(directory: Path) -> Path:
    """A random policy of one layer, whose states still tell the tokens apart."""
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        eos_token_id=1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    return directory


def worth(token_ids: Sequence[int]) -> float:
    return sum(WORTH.get(token, 0.0) for token in token_ids)


def drawn(rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt of 2 to 4 tokens that do not matter, and a response of 3 that do, with the end token."""
    prompt = tuple(rng.randrange(100, 200) for _ in range(rng.randint(2, 4)))
    return prompt, (*rng.choices(sorted(WORTH), k=3), 1)


def likely(logit: float, rng: random.Random) -> bool:
    return rng.random() < 1 / (1 + math.exp(-logit))


def simulated_pairs(count: int, seed: int) -> list[PreferencePair]:
    """Choices of people who follow Bradley and Terry exactly."""
    rng = random.Random(seed)
    pairs = []
    for at in range(count):
        (prompt, left), (_, right) = drawn(rng), drawn(rng)
        prefers_left = likely(worth(left) - worth(right), rng)
        pairs.append(
            PreferencePair(
                event_id=f"p{at}",
                rater="r",
                comparison_id=f"c{at}",
                policy_version=1,
                prompt_token_ids=prompt,
                chosen_token_ids=left if prefers_left else right,
                rejected_token_ids=right if prefers_left else left,
                chosen_side="left" if prefers_left else "right",
                prompt_key=f"k{at}",
            )
        )
    return pairs


def simulated_thumbs(count: int, seed: int, *, slope: float = 2.0, threshold: float = 0.5) -> list[RatedResponse]:
    rng = random.Random(seed)
    thumbs = []
    for at in range(count):
        prompt, response = drawn(rng)
        up = likely(slope * worth(response) - threshold, rng)
        thumbs.append(
            RatedResponse(
                event_id=f"r{at}",
                rater="r",
                interaction_id=f"i{at}",
                policy_version=1,
                prompt_token_ids=prompt,
                token_ids=response,
                value="up" if up else "down",
                prompt_key=f"k{at}",
            )
        )
    return thumbs
