from __future__ import annotations

import pytest

from rlhf_core.engine.pacing import LEAST_TOKENS, RECENT, Pacing

STEP, ANSWER, TOKEN = 0.004, 0.002, 0.001


def seconds(decoding: int, prompt_tokens: int) -> float:
    return STEP + ANSWER * decoding + TOKEN * prompt_tokens


def measured(most: int = 256) -> Pacing:
    """8 answers cost 0.02 s a step, and a prompt token 0.001 s."""
    subject = Pacing(most)
    for decoding, prompt_tokens in ((1, 0), (4, 0), (8, 0), (0, 100), (4, 30), (8, 60)):
        subject.note(seconds(decoding, prompt_tokens), decoding=decoding, prompt_tokens=prompt_tokens)
    return subject


def test_nothing_is_held_back_while_nobody_waits_for_a_next_token() -> None:
    assert measured().budget(decoding=0, prompts=1) == 256


def test_nothing_is_held_back_before_anything_was_measured() -> None:
    subject = Pacing(256)
    assert subject.budget(decoding=3, prompts=1) == 256
    subject.note(0.02, decoding=3, prompt_tokens=0)
    assert subject.budget(decoding=3, prompts=1) == 256


def test_one_prompt_makes_a_step_longer_by_three_quarters_at_most() -> None:
    # 0.02 s a step at 0.001 s a token: 15 tokens cost three quarters of another step.
    assert measured().budget(decoding=8, prompts=1) == 15


def test_a_burst_is_read_as_fast_as_its_share_of_those_who_wait() -> None:
    # 8 of 16 wait for a first token: 8 x 8 / 16 = 4 times what one prompt may take.
    assert measured().budget(decoding=8, prompts=8) == 60
    # 2 of 10: 2 x 2 / 10 is less than one prompt.
    assert measured().budget(decoding=8, prompts=2) == 15
    assert measured().budget(decoding=1, prompts=31) == 4.5e-3 * 31**2 / 32 // TOKEN


def test_a_prompt_always_goes_on_and_the_bound_holds() -> None:
    slow = Pacing(256)
    slow.note(0.001, decoding=1, prompt_tokens=0)
    slow.note(0.1, decoding=0, prompt_tokens=10)
    assert slow.budget(decoding=1, prompts=1) == LEAST_TOKENS
    assert measured(most=9).budget(decoding=8, prompts=8) == 9


def test_a_number_of_answers_that_was_never_measured_is_reckoned_from_others() -> None:
    # 16 answers: 0.004 + 16 x 0.002 s.
    assert measured().budget(decoding=16, prompts=1) == 27


def test_costs_are_told_apart_though_every_step_reads_a_prompt() -> None:
    """A lasting load: nothing but mixed steps, and more answers than any plain step ever had."""
    subject = measured()
    for turn in range(10 * RECENT):
        tokens = 10 + turn % 20
        subject.note(seconds(30, tokens), decoding=30, prompt_tokens=tokens)
    # 0.004 + 30 x 0.002 s a step.
    assert subject.budget(decoding=30, prompts=1) == pytest.approx(48, abs=1)


def test_measurements_follow_what_changes() -> None:
    subject = measured()
    for _ in range(RECENT):
        subject.note(2 * seconds(8, 0), decoding=8, prompt_tokens=0)
        subject.note(2 * seconds(8, 0) + TOKEN * 20, decoding=8, prompt_tokens=20)
    assert subject.budget(decoding=8, prompts=1) == pytest.approx(30, abs=1)


def test_steps_that_took_no_time_at_all_break_nothing() -> None:
    subject = Pacing(256)
    for _ in range(3):
        subject.note(0.0, decoding=2, prompt_tokens=0)
        subject.note(0.0, decoding=2, prompt_tokens=5)
    assert LEAST_TOKENS <= subject.budget(decoding=2, prompts=1) <= 256
