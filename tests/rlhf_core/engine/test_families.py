"""Every family against itself: the engine under random traffic, and transformers one prompt at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rlhf_core.engine.agreement import TOLERANCE, own_logprobs
from rlhf_core.engine.engine import probe
from rlhf_core.models.compiled import CompiledForward
from rlhf_core.models.forward import PlainForward
from rlhf_core.models.fused import FUSED, FusedForward
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.placement import Precision
from tests.needs import needs_cuda
from tests.rlhf_core.engine.generation import alone, engine, plain_logits, play, prompt, request
from tests.rlhf_core.families import FAMILIES, FUSED_FAMILIES, WINDOW, make_family

MakeTinyModel = Callable[..., Path]


@pytest.fixture(
    scope="module",
    params=[(name, PlainForward) for name in FAMILIES]
    + [(name, forward) for forward in (FusedForward, CompiledForward, "bfloat16") for name in FUSED_FAMILIES],
    ids=lambda each: f"{each[0]}-{getattr(each[1], '__name__', each[1])}",
)
def policy(
    request: pytest.FixtureRequest, make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory
) -> LoadedPolicy:
    """Each family by its own transformers modules, and by the forwards written out for it where there are any."""
    name, kind = request.param
    place = tmp_path_factory.mktemp(name)
    if kind == "bfloat16":
        # Weights stored and held in bfloat16 and computed with in float32, beside the same ones in float32.
        directory = make_family(make_tiny_model, place, FAMILIES[name](), seed=5, dtype=torch.bfloat16)
        held = load_policy(directory, frozen=True)
        assert held.model.dtype == torch.bfloat16
        assert isinstance(held.forward, CompiledForward)
        return replace(load_policy(directory), forward=held.forward)
    directory = make_family(make_tiny_model, place, FAMILIES[name](), seed=5)
    policy = load_policy(directory, frozen=True, pack=True)
    if kind is PlainForward:
        return replace(policy, forward=PlainForward(policy.model))
    if kind is FusedForward:
        # What serves on CUDA and in other types; a CPU in float32 computes it as well.
        fused = FusedForward(policy.model, max_context=policy.max_context, frozen=True, pack=True)
        return replace(policy, forward=fused)
    assert isinstance(policy.forward, CompiledForward)
    return policy


def test_the_fused_families_are_those_that_are_tested_as_such(policy: LoadedPolicy) -> None:
    name = type(policy.model).__name__
    assert {f"{family}forcausallm" for family in FUSED_FAMILIES} == {family.lower() for family in FUSED}
    written_out = isinstance(policy.forward, FusedForward | CompiledForward)
    assert isinstance(policy.forward, PlainForward) or (written_out and name in FUSED)


def test_greedy_answers_in_a_changing_batch_equal_generation_alone(policy: LoadedPolicy) -> None:
    dice = random.Random(7)
    # 16 prompt tokens a step: prompts of up to 60 tokens are read in parts, beside running answers.
    subject = engine(policy, max_prefill_tokens=16)
    requests = [request(f"r{i}", prompt(dice, 60), max_tokens=dice.randint(1, 40)) for i in range(24)]
    finished = play(subject, requests, dice)
    assert len(finished) > 12
    assert max(sequence.prompt_length + len(sequence.token_ids) for sequence in finished) > 3 * WINDOW
    for sequence in finished:
        assert sequence.token_ids == alone(policy, sequence)


def test_sampled_logprobs_are_those_of_a_plain_forward(policy: LoadedPolicy) -> None:
    dice = random.Random(8)
    subject = engine(policy, max_prefill_tokens=16)
    requests = [
        request(f"r{i}", prompt(dice, 50), temperature=temperature, max_tokens=30)
        for i, temperature in enumerate([0.7, 1.0, 1.5] * 4)
    ]
    finished = play(subject, requests, dice)
    assert len(finished) > 6
    for sequence in finished:
        expected = (plain_logits(policy, sequence) / sequence.request.sampling.temperature).log_softmax(-1)
        taken = expected.gather(1, torch.tensor(sequence.token_ids)[:, None])[:, 0]
        assert torch.tensor(sequence.logprobs) == pytest.approx(taken.numpy(), abs=1e-4)


def test_the_cache_takes_the_bytes_that_the_policy_says(policy: LoadedPolicy) -> None:
    subject = engine(policy)
    subject.submit(request("r", (9, 8, 7), max_tokens=2))
    subject.step()
    (runner,) = subject._runners.values()
    # 4 slots of 128 tokens each.
    assert runner.cache.bytes == 4 * 128 * policy.kv_bytes_per_token > 0


def test_who_runs_requests_to_their_ends_holds_no_cache_after_them(policy: LoadedPolicy) -> None:
    subject = engine(policy)
    first, again = (subject.generate([request("r", (9, 8, 7), max_tokens=9)])[0].token_ids for _ in range(2))
    (runner,) = subject._runners.values()
    assert runner.cache.bytes == 0
    assert first == again


def test_every_family_passes_the_probe(policy: LoadedPolicy) -> None:
    dice = random.Random(9)
    probe(policy, [prompt(dice, 40) for _ in range(3)])


@pytest.mark.parametrize("name", FAMILIES)
def test_in_bfloat16_the_engine_is_as_close_to_float32_as_the_model_itself(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    directory = make_family(make_tiny_model, tmp_path, FAMILIES[name](), seed=5)
    exact, policy = load_policy(directory), load_policy(directory, dtype="bfloat16", frozen=True)
    assert policy.model.dtype == torch.bfloat16
    dice = random.Random(3)
    requests = [request(f"r{i}", prompt(dice, 40), temperature=1.0, max_tokens=20) for i in range(6)]
    sequences = engine(policy, max_prefill_tokens=16).generate(requests)
    wanted = torch.tensor([p for sequence in sequences for p in own_logprobs(exact, sequence)])
    stored = torch.tensor([p for sequence in sequences for p in sequence.logprobs])
    own = torch.tensor([p for sequence in sequences for p in own_logprobs(policy, sequence)])
    # Measured: 0.01 to 0.05 nats per token from float32, 0.13 for a mixture of experts; the engine adds nothing.
    assert 0 < (stored - wanted).abs().mean() < TOLERANCE[torch.bfloat16]
    assert (stored - wanted).abs().mean() < 1.25 * (own - wanted).abs().mean() + 0.01


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FUSED_FAMILIES)
def test_by_kernels_a_sampled_answer_is_the_same_to_the_bit_whatever_stands_beside_it(
    name: str,
    dtype: Precision,
    stored: torch.dtype,
    make_tiny_model: MakeTinyModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    directory = make_family(make_tiny_model, tmp_path, FAMILIES[name](), seed=5, dtype=stored)
    policy = load_policy(directory, dtype=dtype, frozen=True)
    dice = random.Random(4)
    requests = [
        request(f"r{i}", prompt(dice, 85), temperature=1.0, seed=i, max_tokens=dice.randint(1, 40)) for i in range(16)
    ]
    crowded = play(engine(policy, max_prefill_tokens=16), requests, dice)
    assert len(crowded) > 8
    for sequence in crowded:
        (alone,) = engine(policy).generate([sequence.request])
        assert sequence.token_ids == alone.token_ids[: len(sequence.token_ids)]
        assert sequence.logprobs == alone.logprobs[: len(sequence.logprobs)]


@needs_cuda
@pytest.mark.parametrize("name", FAMILIES)
def test_on_cuda_greedy_answers_equal_generation_alone(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    directory = make_family(make_tiny_model, tmp_path, FAMILIES[name](), seed=5)
    policy = load_policy(directory, device="cuda", dtype="float32", frozen=True)
    dice = random.Random(7)
    subject = engine(policy, max_prefill_tokens=16)
    requests = [request(f"r{i}", prompt(dice, 60), max_tokens=dice.randint(1, 40)) for i in range(24)]
    finished = play(subject, requests, dice)
    (runner,) = subject._runners.values()
    assert runner.cache.layer(0, torch.empty(0), torch.empty(0)).keys.is_cuda
    assert len(finished) > 12
    for sequence in finished:
        assert sequence.token_ids == alone(policy, sequence)
