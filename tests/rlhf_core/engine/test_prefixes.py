from __future__ import annotations

import random
from pathlib import Path

import pytest

from rlhf_core.engine.prefixes import BLOCK, PrefixStore
from rlhf_core.models.load import LoadedPolicy, load_policy
from tests.conftest import MakeTinyModel
from tests.rlhf_core.engine.generation import alone, engine, play, prompt, request


def tokens(count: int, start: int = 0) -> tuple[int, ...]:
    return tuple(range(start, start + count))


def kept(store: PrefixStore, token_ids: tuple[int, ...]) -> int | None:
    """How many tokens were saved; None when nothing was."""
    lengths: list[int] = []
    store.keep(token_ids, lambda length: lengths.append(length) or "saved")
    return lengths[0] if lengths else None


def matched(store: PrefixStore, token_ids: tuple[int, ...]) -> int:
    found = store.match(token_ids)
    return found[1] if found else 0


def test_a_prompt_reuses_the_whole_blocks_that_it_shares() -> None:
    store = PrefixStore(1000)
    assert kept(store, tokens(70)) == 64
    assert matched(store, (*tokens(70), 9)) == 64
    assert matched(store, tokens(40) + (999,) * 40) == 32
    assert matched(store, tokens(15)) == 0
    assert matched(store, tokens(64, start=1)) == 0


def test_one_token_of_a_prompt_is_always_left_to_compute() -> None:
    store = PrefixStore(1000)
    kept(store, tokens(64))
    assert matched(store, tokens(64)) == 48
    assert matched(store, tokens(65)) == 64


def test_the_next_turn_takes_the_place_of_the_one_before() -> None:
    store = PrefixStore(1000)
    kept(store, tokens(64))
    assert kept(store, tokens(128)) == 128
    assert store.tokens == 128
    assert kept(store, tokens(96)) is None
    assert matched(store, tokens(200)) == 128


def test_what_two_conversations_share_outlives_either() -> None:
    store = PrefixStore(4 * 64)
    for other in (1000, 2000, 3000):
        kept(store, tokens(32) + tokens(32, start=other))
    assert store.tokens == 3 * 64
    for other in (4000, 5000, 6000, 7000):
        kept(store, tokens(64, start=other))
    assert store.tokens == 4 * 64
    assert matched(store, tokens(64)) == 0


def test_what_was_used_longest_ago_goes_first_and_the_bound_holds() -> None:
    store = PrefixStore(3 * BLOCK)
    first, second, third, fourth = (tokens(BLOCK, start=100 * i) for i in range(4))
    for token_ids in (first, second, third):
        kept(store, token_ids)
    assert matched(store, (*first, 1)) == BLOCK
    kept(store, fourth)
    assert [matched(store, (*token_ids, 1)) for token_ids in (first, second, third, fourth)] == [16, 0, 16, 16]
    assert kept(store, tokens(4 * BLOCK)) is None
    assert store.tokens == 3 * BLOCK


def test_a_store_of_nothing_keeps_nothing() -> None:
    assert kept(PrefixStore(0), tokens(64)) is None


def test_any_sequence_of_uses_stays_within_bounds_and_matches_only_what_was_kept() -> None:
    dice = random.Random(0)
    store = PrefixStore(200)
    ever: set[tuple[int, ...]] = set()
    for _ in range(500):
        token_ids = tuple(dice.randrange(2) for _ in range(dice.randrange(6))) * BLOCK
        kept(store, token_ids)
        ever.add(token_ids[: len(token_ids) // BLOCK * BLOCK])
        assert store.tokens <= 200
        asked = tuple(dice.randrange(2) for _ in range(dice.randrange(1, 6))) * BLOCK
        length = matched(store, asked)
        assert length < len(asked)
        assert not length or any(kept_ids[:length] == asked[:length] for kept_ids in ever)


def test_a_follow_up_turn_reads_only_what_is_new_and_answers_the_same(tiny_policy: LoadedPolicy) -> None:
    subject = engine(tiny_policy, max_prefix_tokens=256)
    first = subject.generate([request("first", prompt(random.Random(1), 1) * 50, max_tokens=20)])[0]
    history = (*first.request.prompt_token_ids, *first.token_ids)
    follow_up = request("second", (*history, 11, 12, 13), max_tokens=20)
    second = subject.generate([follow_up])[0]
    assert second.reused == (len(history) - 1) // BLOCK * BLOCK
    assert second.token_ids == alone(tiny_policy, second)


@pytest.mark.parametrize("frozen", [False, True])
def test_answers_that_reuse_prefixes_under_load_equal_generation_alone(
    frozen: bool, tiny_model_dir: Path, tiny_policy: LoadedPolicy
) -> None:
    policy = load_policy(tiny_model_dir, frozen=frozen)
    dice = random.Random(7)
    roots = [prompt(dice, 1) * 33, prompt(dice, 1) * 20]
    asked = [
        request(f"r{i}", (*dice.choice(roots), *prompt(dice, 30)), max_tokens=dice.randint(1, 20)) for i in range(40)
    ]
    finished = play(engine(policy, max_prefix_tokens=200, max_prefill_tokens=16), asked, dice)
    assert sum(sequence.reused for sequence in finished) > 100
    for sequence in finished:
        assert sequence.token_ids == alone(tiny_policy, sequence)


def test_a_new_policy_never_sees_the_prefixes_of_the_one_before(
    tiny_policy: LoadedPolicy, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    other = load_policy(make_tiny_model(tmp_path, seed=1), policy_version=2)
    subject = engine(tiny_policy, max_prefix_tokens=256)
    asked = prompt(random.Random(1), 1) * 50
    subject.generate([request("first", asked)])
    subject.swap(other)
    second = subject.generate([request("second", asked)])[0]
    assert second.reused == 0
    assert second.token_ids == alone(other, second)
    subject.swap(tiny_policy)
    assert subject.generate([request("third", asked)])[0].reused == 0
