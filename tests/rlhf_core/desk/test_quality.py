"""Judging answers in bulk: rates worked by hand on four answers."""

import random

import pytest

from rlhf_core.desk.demonstrations import compose_answer, held_out_prompts
from rlhf_core.desk.quality import judge_answers


def test_the_quality_of_known_answers() -> None:
    prompts = [prompt for prompt in held_out_prompts(300, seed=6) if {"name", "order"} <= prompt.slots.keys()][:4]
    rng = random.Random(2)
    good = compose_answer(prompts[0].intent, "courteous", prompts[0].slots, rng)
    rude = compose_answer(prompts[1].intent, "rude", prompts[1].slots, rng)
    right = compose_answer(prompts[2].intent, "courteous", prompts[2].slots, rng)
    miscopied = right.replace(prompts[2].slots["name"], "Nobody")
    quality = judge_answers(prompts, [good, rude, miscopied, "no no no no no no"], [True, True, True, False])
    assert (quality.n, quality.end_rate, quality.fit_rate) == (4, 0.75, 0.75)
    # two answers say slot values, one of them rightly; one of four is courteous and right
    assert (quality.copy_rate, quality.good_share) == (0.5, 0.25)
    assert (quality.manner_shares["courteous"], quality.manner_shares["rude"]) == (0.5, 0.25)
    # six times "no" hold three runs of four
    assert quality.worst_repeat == 3


def test_judging_needs_one_answer_for_each_prompt() -> None:
    with pytest.raises(ValueError, match="1 prompts, 0 answers, 1 endings"):
        judge_answers(held_out_prompts(1, seed=1), [], [True])
    with pytest.raises(ValueError, match="0 prompts"):
        judge_answers([], [], [])
