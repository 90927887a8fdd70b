"""Decode steps of fixed shape: what a CUDA graph would hold. Recorded here by a recorder that runs the work again, so
that everything but the graph itself is tested on a CPU; with the graph on CUDA.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from rlhf_core.engine.cache import SlotCache
from rlhf_core.engine.recorded import LEAST_READ, PaddedStep, RecordedDecode, Replay
from rlhf_core.engine.runner import Runner
from rlhf_core.models.fused import FusedForward
from rlhf_core.models.load import LoadedPolicy, load_policy
from tests.needs import needs_cuda
from tests.rlhf_core.engine.generation import alone, engine, play, prompt, request
from tests.rlhf_core.families import FAMILIES, FUSED_FAMILIES, make_family

MakeTinyModel = Callable[..., Path]
CPU = torch.device("cpu")


def run_again(work: Replay) -> Replay:
    return work


@pytest.fixture(scope="module", params=FUSED_FAMILIES)
def policy(
    request: pytest.FixtureRequest, make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory
) -> LoadedPolicy:
    directory = make_family(make_tiny_model, tmp_path_factory.mktemp("family"), FAMILIES[request.param](), seed=5)
    policy = load_policy(directory, frozen=True)
    # A CPU in float32 is served by kernels, of which there is nothing to record: what CUDA is served by runs here.
    return replace(policy, forward=FusedForward(policy.model, max_context=policy.max_context, frozen=True))


def test_greedy_answers_equal_generation_alone(policy: LoadedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlhf_core.engine.engine.Runner", partial(Runner, record=run_again))
    dice = random.Random(7)
    # Three slots: batches of three are padded to what there is, those of one and two are not.
    subject = engine(policy, max_running=3, max_prefill_tokens=16)
    finished = play(
        subject, [request(f"r{i}", prompt(dice, 60), max_tokens=dice.randint(1, 60)) for i in range(24)], dice
    )
    assert len(finished) > 8
    for sequence in finished:
        assert sequence.token_ids == alone(policy, sequence)
    (runner,) = subject._runners.values()
    assert runner._recorded is not None
    assert {1, 3} <= {rows for rows, _ in runner._recorded._steps} <= {1, 2, 3}


def test_a_step_is_recorded_once_for_its_size(policy: LoadedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    recordings = []

    def record(work: Replay) -> Replay:
        recordings.append(work)
        return work

    monkeypatch.setattr("rlhf_core.engine.engine.Runner", partial(Runner, record=record))
    subject = engine(policy, max_running=8, max_context=200)
    asked = [request(f"r{i}", prompt(random.Random(i), 20), max_tokens=150) for i in range(5)]
    subject.generate(replace(each, ignore_end=True) for each in asked)
    # Five rows are eight, and 150 tokens pass the 128 that a short one reads.
    assert len(recordings) == 2


def test_a_row_without_a_sequence_sees_something_whatever_is_read() -> None:
    positions = torch.tensor([3, 255])
    for window in (None, 16):
        hidden = PaddedStep(SlotCache(2, 256), positions, 128)._reach(2, window, torch.float32).hidden
        assert hidden is not None
        # A softmax over nothing is NaN, and would be stored as a key.
        assert (hidden == 0).any(dim=-1).all()
        assert (hidden[0, 0, 0] == 0).nonzero()[:, 0].tolist() == [0, 1, 2, 3]


def test_rows_without_a_sequence_leave_the_other_slots_as_they_are(policy: LoadedPolicy) -> None:
    assert policy.forward is not None
    cache = SlotCache(4, 64)
    recorded = RecordedDecode(policy.forward, cache, run_again, device=CPU)
    with torch.inference_mode():
        recorded([7], [0])
        before = [layer.keys.clone() for layer in cache._layers.values()]
        logits = recorded([5, 6, 7], [3, 4, 5])
    assert logits.shape == (3, policy.vocab_size)
    for layer, old in zip(cache._layers.values(), before, strict=True):
        assert torch.equal(layer.keys[3, :, :63], old[3, :, :63])
        assert not torch.equal(layer.keys[2, :, 5], old[2, :, 5])


def test_what_was_recorded_over_forgotten_keys_is_forgotten(policy: LoadedPolicy) -> None:
    runner = Runner(policy, slots=4, max_context=LEAST_READ, record=run_again)
    before = runner._recorded
    assert before is not None
    with torch.inference_mode():
        before([7], [0])
    runner.clear()
    assert runner._recorded is not None
    assert runner._recorded is not before
    assert not runner._recorded._steps
    assert not runner.cache.bytes


def test_where_recording_fails_steps_run_as_they_are(
    policy: LoadedPolicy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def record(work: Replay) -> Replay:
        raise torch.OutOfMemoryError("no room for a graph")

    monkeypatch.setattr("rlhf_core.engine.engine.Runner", partial(Runner, record=record))
    (sequence,) = engine(policy).generate([request("r", (9, 8, 7), max_tokens=8)])
    assert sequence.token_ids == alone(policy, sequence)
    (warning,) = caplog.messages
    assert warning == "decode steps are not recorded from now on: no room for a graph"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_neither_transformers_own_modules_nor_compiled_ones_are_recorded(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    policy = load_policy(make_family(make_tiny_model, tmp_path, FAMILIES[name](), seed=5), frozen=True)
    assert Runner(policy, slots=2, max_context=32, record=run_again)._recorded is None


@needs_cuda
@pytest.mark.parametrize("name", FUSED_FAMILIES)
def test_on_cuda_graphs_answer_as_generation_alone_on_both_policies_of_a_swap(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    policies = []
    for seed in (5, 6):
        directory = make_family(make_tiny_model, tmp_path / str(seed), FAMILIES[name](), seed=seed)
        policies.append(load_policy(directory, device="cuda", dtype="float32", frozen=True))
    dice = random.Random(7)
    subject = engine(policies[0], max_running=3, max_prefill_tokens=16)
    sequences = [subject.submit(request(f"a{i}", prompt(dice, 30), max_tokens=40)) for i in range(3)]
    for _ in range(8):
        subject.step()
    recorded = [runner._recorded for runner in subject._runners.values()]
    assert recorded[0] is not None
    assert recorded[0]._steps
    subject.swap(policies[1])
    sequences += [subject.submit(request(f"b{i}", prompt(dice, 30), max_tokens=40)) for i in range(3)]
    while subject.has_work:
        subject.step()
    assert {id(sequence.policy) for sequence in sequences} == {id(policy) for policy in policies}
    for sequence in sequences:
        assert sequence.policy is not None
        assert sequence.token_ids == alone(sequence.policy, sequence)
