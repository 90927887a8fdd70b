from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core.engine.agreement import own_logprobs, require_agreement
from rlhf_core.engine.engine import probe
from rlhf_core.errors import ModelError
from rlhf_core.models.forward import PlainForward
from rlhf_core.models.load import LoadedPolicy, load_policy
from tests.rlhf_core.engine.generation import engine, request
from tests.rlhf_core.families import FAMILIES, make_family

MakeTinyModel = Callable[..., Path]

PROMPTS = [(9, 8, 7, 6, 5, 4, 3, 2, 9, 9), (5,), (40, 41, 42)]


class EveryOtherPosition(PlainForward):
    """A forward with a fault that leaves its logits finite: positions run twice as fast as they should."""

    def __call__(self, token_ids: Tensor, positions: Tensor, kept: Tensor | None, slots: Any) -> Tensor:
        return super().__call__(token_ids, positions * 2, kept, slots)


def test_a_policy_that_the_engine_computes_otherwise_than_the_model_does_not_pass_the_probe(
    tiny_policy: LoadedPolicy,
) -> None:
    probe(tiny_policy, PROMPTS)
    with pytest.raises(ModelError, match=r"LlamaForCausalLM gives other probabilities .* nats per token apart"):
        probe(replace(tiny_policy, forward=EveryOtherPosition(tiny_policy.model)), PROMPTS)


def test_weights_held_in_bfloat16_are_judged_in_float32(make_tiny_model: MakeTinyModel, tmp_path: Path) -> None:
    directory = make_family(make_tiny_model, tmp_path, FAMILIES["qwen3"](), dtype=torch.bfloat16)
    held, exact = load_policy(directory, frozen=True), load_policy(directory)
    (sequence,) = engine(held).generate([request("r", PROMPTS[0], max_tokens=8)])
    assert own_logprobs(held, sequence) == pytest.approx(own_logprobs(exact, sequence), abs=1e-5)
    probe(held, PROMPTS)


def test_what_computes_in_bfloat16_is_judged_by_what_it_computes_itself(
    make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    # Its router multiplies in float32 whatever the rest is in.
    directory = make_family(make_tiny_model, tmp_path, FAMILIES["deepseek_v3"](), seed=5)
    policy = load_policy(directory, dtype="bfloat16", frozen=True)
    (sequence,) = engine(policy).generate([request("r", PROMPTS[0], max_tokens=8)])
    tokens = torch.tensor([[*PROMPTS[0], *sequence.token_ids]])
    with torch.inference_mode():
        logprobs = policy.model(input_ids=tokens, use_cache=False).logits[0].float().log_softmax(-1)
    expected = [float(logprobs[len(PROMPTS[0]) - 1 + at, token]) for at, token in enumerate(sequence.token_ids)]
    assert own_logprobs(policy, sequence) == expected


def test_the_gap_is_measured_in_nats_per_token(tiny_policy: LoadedPolicy) -> None:
    sequences = engine(tiny_policy).generate([request("r", PROMPTS[0], max_tokens=4)])
    require_agreement(tiny_policy, sequences)
    # One of four tokens is off by 0.04 nats: 0.01 on average, twice what float32 allows.
    assert tiny_policy.model.dtype == torch.float32
    sequences[0].logprobs[2] += 0.04
    with pytest.raises(ModelError, match=r"0\.01 nats per token apart, where 0\.005 is allowed"):
        require_agreement(tiny_policy, sequences)
