from __future__ import annotations

import pytest

from rlhf_core.engine.pacing import LEAST_TOKENS, Pacing


def measured(step: float = 0.02, token: float = 0.001, most: int = 256) -> Pacing:
    subject = Pacing(most)
    subject.note(step, decoding=8, prompt_tokens=0)
    subject.note(100 * token, decoding=0, prompt_tokens=100)
    return subject


def test_nothing_is_held_back_while_nobody_waits_for_a_token() -> None:
    assert measured().budget(decoding=0, prompts=1) == 256


def test_nothing_is_held_back_before_anything_was_measured() -> None:
    assert Pacing(256).budget(decoding=3, prompts=1) == 256


def test_one_prompt_makes_a_step_twice_as_long_at_most() -> None:
    # 0.02 s a step at 0.001 s a token: 20 tokens cost another step.
    assert measured().budget(decoding=8, prompts=1) == 20


def test_a_burst_is_read_faster_in_proportion() -> None:
    assert measured().budget(decoding=8, prompts=5) == 100
    assert measured().budget(decoding=1, prompts=31) == 256


def test_a_prompt_always_goes_on() -> None:
    assert measured(step=0.001, token=0.01).budget(decoding=1, prompts=1) == LEAST_TOKENS


def test_the_cost_of_a_token_is_what_a_mixed_step_takes_more() -> None:
    subject = Pacing(1000)
    subject.note(0.02, decoding=8, prompt_tokens=0)
    # 0.06 s with 20 tokens: each added 0.002 s, so 10 fit into another 0.02 s.
    subject.note(0.06, decoding=8, prompt_tokens=20)
    assert subject.budget(decoding=8, prompts=1) == 10


def test_measurements_follow_what_changes() -> None:
    subject = measured()
    for _ in range(100):
        subject.note(0.04, decoding=16, prompt_tokens=0)
    assert subject.budget(decoding=16, prompts=1) == pytest.approx(40, abs=1)
