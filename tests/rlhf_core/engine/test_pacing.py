from __future__ import annotations

import random

import pytest

from rlhf_core.engine.pacing import LATELY, LEAST_TOKENS, RECENT, Pacing

STEP, ANSWER, BEGINNING, TOKEN = 0.004, 0.002, 0.003, 0.0005


def plain(decoding: int) -> float:
    return STEP + ANSWER * decoding


def mixed(decoding: int, tokens: int, beginning: float = BEGINNING) -> float:
    return plain(decoding) + beginning + TOKEN * tokens


def measured(most: int = 256) -> Pacing:
    """8 answers cost 0.02 s a step; a prompt's part 0.003 s, and 0.0005 s for each of its tokens."""
    subject = Pacing(most)
    for decoding in (1, 8):
        subject.note(plain(decoding), decoding=decoding, prompt_tokens=0)
    for decoding, tokens in ((8, 10), (8, 40), (1, 100)):
        subject.note(mixed(decoding, tokens), decoding=decoding, prompt_tokens=tokens)
    return subject


def test_nothing_is_held_back_while_nobody_waits_for_a_next_token() -> None:
    assert measured().budget(decoding=0, prompts=1) == 256


def test_nothing_is_held_back_before_anything_was_measured() -> None:
    subject = Pacing(256)
    assert subject.budget(decoding=3, prompts=1) == 256
    subject.note(0.02, decoding=3, prompt_tokens=0)
    assert subject.budget(decoding=3, prompts=1) == 256


def test_one_prompt_makes_a_step_longer_by_half_at_most() -> None:
    # 0.5 x 0.02 s, less 0.003 s to begin with, at 0.0005 s a token.
    assert measured().budget(decoding=8, prompts=1) == 14


def test_a_burst_is_read_as_fast_as_its_share_of_those_who_wait() -> None:
    # 8 of 16 wait for a first token: 8 x 8 / 16 = 4 times 0.75 x 0.02 s.
    assert measured().budget(decoding=8, prompts=8) == 114
    # 2 of 10: 0.75 x 2 x 2 / 10 is less than what one prompt alone may take.
    assert measured().budget(decoding=8, prompts=2) == 14


def test_a_prompt_always_goes_on_and_the_bound_holds() -> None:
    slow = Pacing(256)
    slow.note(0.001, decoding=1, prompt_tokens=0)
    slow.note(0.101, decoding=1, prompt_tokens=10)
    assert slow.budget(decoding=1, prompts=1) == LEAST_TOKENS
    assert measured(most=9).budget(decoding=8, prompts=8) == 9


def test_a_part_is_never_so_small_that_beginning_it_takes_longer_than_reading_it() -> None:
    subject = Pacing(256)
    subject.note(plain(8), decoding=8, prompt_tokens=0)
    for tokens in (20, 50, 80):
        subject.note(mixed(8, tokens, beginning=0.04), decoding=8, prompt_tokens=tokens)
    # 0.01 s are allowed, which does not even begin a part: 0.04 s of tokens go with it.
    assert subject.budget(decoding=8, prompts=1) == 80


def test_a_number_of_answers_that_was_never_measured_costs_no_more_than_a_larger_one() -> None:
    assert measured().budget(decoding=5, prompts=1) == measured().budget(decoding=8, prompts=1)


def test_one_slow_step_of_few_answers_does_not_outlive_faster_ones_of_more() -> None:
    subject = measured()
    subject.note(0.2, decoding=2, prompt_tokens=0)
    assert subject.budget(decoding=2, prompts=1) == 14


def test_prompts_are_read_on_though_every_step_reads_one() -> None:
    """A lasting load: nothing but mixed steps, with more answers than any plain step ever had."""
    subject = measured()
    tokens = 10
    for _ in range(10 * RECENT):
        subject.note(mixed(30, tokens), decoding=30, prompt_tokens=tokens)
        tokens = subject.budget(decoding=30, prompts=3)
        assert tokens >= 10


def test_measurements_follow_what_changes() -> None:
    subject = measured()
    for turn in range(RECENT):
        subject.note(2 * plain(8), decoding=8, prompt_tokens=0)
        subject.note(2 * plain(8) + 0.002 * (turn + 1), decoding=8, prompt_tokens=turn + 1)
    # 0.5 x 0.04 s at 0.002 s a token, and nothing to begin.
    assert subject.budget(decoding=8, prompts=1) == pytest.approx(10, abs=2)


@pytest.mark.parametrize("seed", range(5))
def test_steps_that_something_else_made_slow_do_not_make_parts_many_times_larger(seed: int) -> None:
    subject, dice, sizes = measured(), random.Random(seed), [14]
    for _ in range(8 * RECENT):
        held_up = 0.1 if dice.random() < 0.25 else 0.0
        subject.note(mixed(8, sizes[-1]) + held_up, decoding=8, prompt_tokens=sizes[-1])
        sizes.append(subject.budget(decoding=8, prompts=1))
    # 14 without the noise. By a mean, a beginning would seem to take 0.028 s, and parts grow to more than 100.
    assert max(sizes) <= 20


def test_what_a_step_took_long_ago_does_not_count() -> None:
    subject = measured()
    subject.note(plain(8) / 2, decoding=12, prompt_tokens=0)
    assert subject.budget(decoding=8, prompts=1) == LEAST_TOKENS
    for _ in range(LATELY):
        subject.note(plain(8), decoding=8, prompt_tokens=0)
    assert subject.budget(decoding=8, prompts=1) == 14


def test_steps_that_took_no_time_at_all_break_nothing() -> None:
    subject = Pacing(256)
    for _ in range(3):
        subject.note(0.0, decoding=2, prompt_tokens=0)
        subject.note(0.0, decoding=2, prompt_tokens=5)
    assert LEAST_TOKENS <= subject.budget(decoding=2, prompts=1) <= 256


def test_a_slope_that_noise_hides_does_not_make_parts_many_times_larger() -> None:
    subject = Pacing(512)
    subject.note(plain(8), decoding=8, prompt_tokens=0)
    for tokens, seconds in ((20, 0.020), (50, 0.019), (80, 0.021)):
        subject.note(plain(8) + seconds, decoding=8, prompt_tokens=tokens)
    # 0.0004 s a token with the beginning, so at least a third of that without. That leaves 0.0103 s of the part of 80
    # for its beginning, as much as 78 tokens.
    assert subject.budget(decoding=8, prompts=1) == 78
