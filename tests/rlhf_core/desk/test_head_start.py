"""The planted heads copy before any training, and a fresh model without them does not."""

import random

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_core.desk.head_start import plant_copying_heads

VOCAB = 600
DIGITS = range(10)


def fresh_model(*, attention_bias: bool = True) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        intermediate_size=256,
        tie_word_embeddings=True,
        attention_bias=attention_bias,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
    )
    return LlamaForCausalLM(config)


def shuffled_repeat(rng: random.Random) -> tuple[list[int], list[int]]:
    """Six runs of random tokens, then the same runs in another order; and the places a copier can know.

    Half the runs are digits, which repeat, so one token of context does not tell where a run stood. The first two
    tokens of a run are left out: nothing before them says which run comes.
    """
    runs = [[rng.choice(DIGITS) for _ in range(6)] if k % 2 else rng.sample(range(10, VOCAB), 5) for k in range(6)]
    token_ids = [token for run in runs for token in run]
    known: list[int] = []
    for run in rng.sample(runs, len(runs)):
        known += range(len(token_ids) + 2, len(token_ids) + len(run))
        token_ids += run
    return token_ids, known


def copied_share(model: LlamaForCausalLM) -> float:
    rng = random.Random(3)
    cases = [shuffled_repeat(rng) for _ in range(12)]
    rows = torch.tensor([token_ids for token_ids, _ in cases])
    with torch.inference_mode():
        guesses = model(input_ids=rows).logits.argmax(-1)
    right = [int(guesses[k, at - 1]) == int(rows[k, at]) for k, (_, known) in enumerate(cases) for at in known]
    return sum(right) / len(right)


def test_planted_heads_copy_runs_met_before_without_training() -> None:
    model = fresh_model()
    assert copied_share(model) < 0.1
    plant_copying_heads(model)
    assert copied_share(model) > 0.6


def test_the_same_random_state_plants_the_same_heads() -> None:
    first, second = fresh_model(), fresh_model()
    for model in (first, second):
        torch.manual_seed(1)
        plant_copying_heads(model)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_a_model_without_biases_is_refused() -> None:
    with pytest.raises(AssertionError, match="biases"):
        plant_copying_heads(fresh_model(attention_bias=False))
