"""Continuous batching against generation one at a time: two implementations check each other."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_core.engine.engine import probe
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.errors import ConflictError, ContextOverflowError, InvalidRequestError, ModelError, OverloadedError
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.records import Sampling
from tests.rlhf_core.engine.generation import alone, engine, plain_logits, play, prompt, request

MakeTinyModel = Callable[..., Path]


@pytest.fixture(scope="module")
def other_policy(make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory) -> LoadedPolicy:
    """Other weights of the same shape, as policy version 2."""
    return load_policy(make_tiny_model(tmp_path_factory.mktemp("other"), seed=1), policy_version=2)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_greedy_answers_in_a_changing_batch_equal_generation_alone(
    kv_heads: int, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    policy = load_policy(make_tiny_model(tmp_path, seed=3, kv_heads=kv_heads))
    dice = random.Random(kv_heads)
    # 16 prompt tokens a step: prompts of up to 40 tokens are read in parts, beside running answers.
    subject = engine(policy, max_prefill_tokens=16)
    requests = [request(f"r{i}", prompt(dice), max_tokens=dice.randint(1, 30)) for i in range(40)]
    finished = play(subject, requests, dice)
    assert len(finished) > 20
    for sequence in finished:
        assert sequence.token_ids == alone(policy, sequence)
        assert sequence.finish_reason == ("stop" if sequence.token_ids[-1] == 1 else "length")


def test_stored_logprobs_are_those_of_a_plain_forward(tiny_policy: LoadedPolicy) -> None:
    dice = random.Random(2)
    subject = engine(tiny_policy, max_prefill_tokens=16)
    requests = [
        request(f"r{i}", prompt(dice), temperature=temperature, top_p=0.9, max_tokens=20)
        for i, temperature in enumerate([0.5, 1.0, 1.7] * 4)
    ]
    for sequence in play(subject, requests, dice):
        expected = (plain_logits(tiny_policy, sequence) / sequence.request.sampling.temperature).log_softmax(-1)
        taken = expected.gather(1, torch.tensor(sequence.token_ids)[:, None])[:, 0]
        assert torch.tensor(sequence.logprobs) == pytest.approx(taken.numpy(), abs=1e-4)


def test_a_prompt_read_in_parts_gives_the_answer_of_one_read_at_once(tiny_policy: LoadedPolicy) -> None:
    long = request("long", prompt(random.Random(0), 1) * 60)
    parts = engine(tiny_policy, max_prefill_tokens=7).generate([long])
    whole = engine(tiny_policy, max_prefill_tokens=60).generate([long])
    assert parts[0].token_ids == whole[0].token_ids


def test_running_answers_go_on_while_a_long_prompt_is_read(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy, max_prefill_tokens=10)
    subject.submit(GenerationRequest("short", (9, 8, 7), Sampling(max_tokens=50), ignore_end=True))
    subject.step()
    subject.submit(request("long", prompt(random.Random(0), 1) * 45))
    # 45 tokens at 10 a step are read in 5 steps; the short answer gets a token in each.
    for _ in range(4):
        assert [output.sequence.request.request_id for output in subject.step()] == ["short"]
    assert [output.sequence.request.request_id for output in subject.step()] == ["short", "long"]


def test_an_aborted_request_gives_its_slot_to_the_next_step(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy, max_running=1)
    first = subject.submit(GenerationRequest("first", (9, 8), Sampling(), ignore_end=True))
    second = subject.submit(request("second", (7, 6)))
    subject.step()
    assert (subject.running, subject.waiting) == (1, 1)
    assert subject.abort("first")
    assert (subject.running, subject.waiting, first.status) == (0, 1, "aborted")
    assert [output.sequence for output in subject.step()] == [second]
    assert not subject.abort("first")
    assert subject.abort("second")
    assert not subject.has_work
    assert subject.step() == []


def test_a_waiting_request_can_be_aborted(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy)
    sequence = subject.submit(request("r", (9,)))
    assert subject.abort("r")
    assert sequence.status == "aborted"
    assert not subject.has_work


def test_after_a_swap_running_answers_finish_on_the_old_policy_and_new_ones_start_on_the_new(
    tiny_policy: LoadedPolicy, other_policy: LoadedPolicy
) -> None:
    dice = random.Random(11)
    subject = engine(tiny_policy, max_running=6, max_prefill_tokens=32)
    before = [
        subject.submit(GenerationRequest(f"old{i}", prompt(dice), Sampling(temperature=0.0, max_tokens=5 * i + 5)))
        for i in range(4)
    ]
    waiting = [subject.submit(request(f"waiting{i}", prompt(dice), max_tokens=8)) for i in range(6)]
    while any(sequence.status == "waiting" for sequence in before):
        subject.step()
    late = [sequence for sequence in waiting if sequence.status == "waiting"]
    assert late
    old = [sequence for sequence in (*before, *waiting) if sequence not in late]
    subject.swap(other_policy)
    assert (subject.active, subject.draining) == (other_policy, tiny_policy)
    while subject.has_work:
        subject.step()
    assert subject.draining is None
    for sequences, policy in ((old, tiny_policy), (late, other_policy)):
        for sequence in sequences:
            assert sequence.policy is policy
            assert sequence.token_ids == alone(policy, sequence)


def test_a_second_swap_waits_for_the_first_to_drain(tiny_policy: LoadedPolicy, other_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy)
    subject.submit(GenerationRequest("r", (9, 8), Sampling(), ignore_end=True))
    subject.step()
    subject.swap(other_policy)
    with pytest.raises(ConflictError, match="previous policy"):
        subject.swap(tiny_policy)
    subject.abort("r")
    subject.swap(tiny_policy)
    assert (subject.active, subject.draining) == (tiny_policy, None)


def test_fifty_swaps_leave_one_weight_set_and_one_cache(tiny_policy: LoadedPolicy, other_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy)
    for turn in range(50):
        subject.submit(request(f"r{turn}", (9, 8, turn + 5), max_tokens=3))
        subject.step()
        subject.swap(other_policy if turn % 2 == 0 else tiny_policy)
        while subject.has_work:
            subject.step()
    assert len(subject._runners) == 1
    assert subject.draining is None


def test_a_policy_of_another_shape_is_not_swapped_in(tiny_policy: LoadedPolicy, tiny_model_dir: Path) -> None:
    subject = engine(tiny_policy)
    with pytest.raises(ModelError, match="context of 64 is below the engine's 128"):
        subject.swap(load_policy(tiny_model_dir, max_context=64))
    assert subject.active is tiny_policy


def test_seeded_answers_repeat_whatever_else_is_in_the_batch(tiny_policy: LoadedPolicy) -> None:
    dice = random.Random(4)
    asked = prompt(dice)
    wanted = engine(tiny_policy).generate([request("r", asked, temperature=1.0, seed=42, max_tokens=25)])[0]
    crowd = [request(f"c{i}", prompt(dice), temperature=1.0, max_tokens=20) for i in range(8)]
    crowd.insert(5, request("r", asked, temperature=1.0, seed=42, max_tokens=25))
    again = engine(tiny_policy, seed=99).generate(crowd)[5]
    assert again.token_ids == wanted.token_ids
    other = engine(tiny_policy).generate([request("r", asked, temperature=1.0, seed=43, max_tokens=25)])[0]
    assert other.token_ids != wanted.token_ids


def test_unseeded_answers_follow_the_engines_seed(tiny_policy: LoadedPolicy) -> None:
    asked = [request(f"r{i}", (9, 8, 7), temperature=1.0, max_tokens=20) for i in range(3)]
    first, second, third = (
        [sequence.token_ids for sequence in engine(tiny_policy, seed=seed).generate(asked)] for seed in (1, 1, 2)
    )
    assert first == second != third
    assert first[0] != first[1]


def test_text_is_the_decoded_response_and_streams_without_loss(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy)
    dice = random.Random(5)
    sequences = [subject.submit(request(f"r{i}", prompt(dice), temperature=1.0, max_tokens=40)) for i in range(6)]
    streamed = dict.fromkeys(sequences, "")
    while subject.has_work:
        for output in subject.step():
            streamed[output.sequence] += output.text
    for sequence in sequences:
        whole = tiny_policy.tokenizer.decode(sequence.token_ids, skip_special_tokens=True)
        assert streamed[sequence] == sequence.text == whole.rstrip("\ufffd")


def test_a_stop_string_ends_the_answer_before_it(tiny_policy: LoadedPolicy) -> None:
    free = engine(tiny_policy).generate([request("r", (9, 8, 7), max_tokens=30)])[0]
    stop = free.text[4:6]
    cut = engine(tiny_policy).generate([request("r", (9, 8, 7), max_tokens=30, stop=(stop,))])[0]
    assert cut.finish_reason == "stop"
    assert cut.text == free.text[: free.text.index(stop)]
    assert cut.token_ids == free.token_ids[: len(cut.token_ids)]
    assert len(cut.token_ids) < len(free.token_ids)


def test_without_text_only_tokens_are_made(tiny_policy: LoadedPolicy) -> None:
    asked = GenerationRequest("r", (9, 8), Sampling(temperature=0.0, max_tokens=9), decode_text=False)
    sequence = engine(tiny_policy).generate([asked])[0]
    assert sequence.text == ""
    assert sequence.token_ids == alone(tiny_policy, sequence)


def test_the_end_token_stops_and_is_kept_unless_it_is_ignored(tiny_policy: LoadedPolicy) -> None:
    ending = copy.copy(tiny_policy)
    first = engine(tiny_policy).generate([request("r", (9, 8, 7))])[0].token_ids
    object.__setattr__(ending, "end_token_ids", frozenset({first[2]}))
    stopped = engine(ending).generate([request("r", (9, 8, 7))])[0]
    assert (stopped.token_ids, stopped.finish_reason) == (first[:3], "stop")
    ignoring = GenerationRequest("r", (9, 8, 7), Sampling(temperature=0.0, max_tokens=12), ignore_end=True)
    assert engine(ending).generate([ignoring])[0].token_ids == first


def test_max_tokens_is_cut_to_the_context(tiny_policy: LoadedPolicy) -> None:
    asked = GenerationRequest("r", (9,) * 120, Sampling(max_tokens=500), ignore_end=True)
    sequence = engine(tiny_policy).generate([asked])[0]
    assert len(sequence.token_ids) == 8
    assert sequence.finish_reason == "length"


def test_a_prompt_without_room_for_one_token_is_refused(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy)
    with pytest.raises(ContextOverflowError, match="the prompt has 128 tokens"):
        subject.submit(request("r", (9,) * 128))
    assert len(subject.generate([request("r", (9,) * 127)])[0].token_ids) == 1


@pytest.mark.parametrize("bad", [(), (9, 300), (-1,)])
def test_tokens_that_do_not_exist_are_refused(bad: tuple[int, ...], tiny_policy: LoadedPolicy) -> None:
    with pytest.raises(InvalidRequestError):
        engine(tiny_policy).submit(request("r", bad))


def test_a_request_id_is_in_the_engine_once(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy)
    subject.submit(request("r", (9,)))
    with pytest.raises(ConflictError, match="already"):
        subject.submit(request("r", (9,)))


def test_a_full_queue_refuses_and_generate_works_through_it(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy, max_running=2, max_waiting=1)
    for name in "abc":
        subject.submit(request(name, (9,)))
    with pytest.raises(OverloadedError):
        subject.submit(request("d", (9,)))
    assert subject.abort("b")
    subject.submit(request("d", (9,)))
    for name in "acd":
        subject.abort(name)
    many = subject.generate(request(f"m{i}", (9, i + 5), max_tokens=i % 4 + 1) for i in range(11))
    assert [sequence.request.request_id for sequence in many] == [f"m{i}" for i in range(11)]
    assert [len(sequence.token_ids) for sequence in many] == [i % 4 + 1 for i in range(11)]


def test_logits_that_are_not_finite_fail_that_set_alone(
    tiny_policy: LoadedPolicy, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    broken = load_policy(make_tiny_model(tmp_path, seed=2), policy_version=2)
    with torch.no_grad():
        broken.model.get_input_embeddings().weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="not finite"):
        probe(broken, [(9, 8, 7)])
    subject = engine(tiny_policy)
    good = subject.submit(request("good", (9, 8, 7), max_tokens=20))
    subject.step()
    subject.swap(broken)
    bad = subject.submit(request("bad", (9, 8, 7)))
    outputs = subject.step()
    failed = next(output for output in outputs if output.sequence is bad)
    assert failed.finished
    assert bad.status == "failed"
    assert "not finite" in bad.error
    while subject.has_work:
        subject.step()
    assert good.token_ids == alone(tiny_policy, good)


def test_a_failed_weight_set_leaves_nothing_behind(make_tiny_model: MakeTinyModel, tmp_path: Path) -> None:
    policy = load_policy(make_tiny_model(tmp_path, seed=2))
    table = policy.model.get_input_embeddings().weight
    sound = table[50].detach().clone()
    subject = engine(policy)
    with torch.no_grad():
        table[50] = torch.nan
    subject.submit(request("bad", (9,) * 30 + (50,) * 30))
    assert [output.sequence.status for output in subject.step()] == ["failed"]
    with torch.no_grad():
        table[50] = sound
    # The short answer takes the slot of the failed one; beside a longer one it looks past its own end, with weight 0.
    for sequence in subject.generate([request("short", (9, 8)), request("long", (9, 8, 7, 6, 5) * 10)]):
        assert sequence.token_ids == alone(policy, sequence)


def test_a_sound_policy_passes_the_probe(tiny_policy: LoadedPolicy) -> None:
    probe(tiny_policy, [(9, 8, 7), (5,)])


def test_the_number_of_cached_tokens_follows_what_runs(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy)
    subject.submit(request("r", (9, 8, 7), max_tokens=2))
    subject.step()
    # The prompt is in the cache; the drawn token enters with the next step.
    assert subject.cached_tokens == 3
    subject.step()
    assert subject.cached_tokens == 0


def test_the_same_object_still_computes_padded_training_batches(tiny_policy: LoadedPolicy) -> None:
    rows = torch.tensor([[9, 8, 7, 6], [5, 9, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        padded = tiny_policy.model(rows, attention_mask=mask).logits[1, :2]
        single = tiny_policy.model(torch.tensor([[5, 9]])).logits[0]
    assert padded.numpy() == pytest.approx(single.numpy(), abs=1e-5)
