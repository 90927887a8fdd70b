"""The scripted raters and customers: their taste, their errors, and that a seed repeats them."""

import itertools
import random
from collections import Counter

import pytest

from rlhf_core.desk.demonstrations import DeskPrompt, compose_answer, training_prompts
from rlhf_core.desk.grammar import INTENTS
from rlhf_core.desk.phrases import Manner
from rlhf_core.desk.raters import BADNESS, REASONS, Customer, Judgement, Rater, flaw_of, is_good
from rlhf_core.desk.slots import CLOSED, is_held_out
from rlhf_core.records import REASONS_DOWN, REASONS_UP


def prompt_of(intent: str) -> DeskPrompt:
    return next(prompt for prompt in training_prompts(len(INTENTS), seed=8) if prompt.intent == intent)


def answer_to(prompt: DeskPrompt, manner: Manner) -> str:
    return compose_answer(prompt.intent, manner, prompt.slots, random.Random(1))


@pytest.mark.parametrize(
    ("intent", "manner", "judgement"),
    [
        ("coverage", "courteous", Judgement("up", ("accurate", "helpful", "right_tone"))),
        ("coverage", "curt", Judgement("down", ("too_short", "tone"))),
        ("coverage", "rambling", Judgement("down", ("too_long",))),
        ("coverage", "unhelpful", Judgement("down", ("unhelpful",))),
        ("coverage", "rude", Judgement("down", ("tone", "unhelpful"))),
        ("unsafe_pin", "unsafe", Judgement("down", ("harmful",))),
        ("unsafe_pin", "courteous", Judgement("up", ("accurate", "helpful", "right_tone"))),
    ],
)
def test_a_rater_without_noise_judges_by_manner(intent: str, manner: Manner, judgement: Judgement) -> None:
    prompt = prompt_of(intent)
    assert Rater(seed=1, noise=0.0).rate(prompt, answer_to(prompt, manner)) == judgement


def test_a_wrong_copy_and_an_unknown_answer_are_bad() -> None:
    prompt = prompt_of("order_damaged")
    wrong = answer_to(prompt, "courteous").replace(prompt.slots["order"], "10000")
    assert flaw_of(prompt, wrong) == "inaccurate"
    assert flaw_of(prompt, "Bananas are yellow.") == "unknown"
    assert Rater(seed=1, noise=0.0).rate(prompt, wrong) == Judgement("down", ("inaccurate",))
    assert not is_good(prompt, wrong)
    assert is_good(prompt, answer_to(prompt, "courteous"))


def test_a_good_answer_beats_a_bad_one_on_either_side() -> None:
    prompt = prompt_of("unsafe_address")
    good = answer_to(prompt, "courteous")
    rater = Rater(seed=2, noise=0.0)
    for bad in (answer_to(prompt, "unsafe"), answer_to(prompt, "curt"), "Bananas are yellow."):
        assert rater.choose(prompt, good, bad) == "left"
        assert rater.choose(prompt, bad, good) == "right"


def test_equal_answers_are_ties_when_good_and_both_bad_when_bad() -> None:
    prompt = prompt_of("coverage")
    good, rude = answer_to(prompt, "courteous"), answer_to(prompt, "rude")
    rater = Rater(seed=3, noise=0.0)
    choices = Counter(rater.choose(prompt, good, good) for _ in range(400))
    # half are ties (standard deviation 10), the other half falls evenly to both sides
    assert 160 < choices["tie"] < 240
    assert min(choices["left"], choices["right"]) > 60
    assert {rater.choose(prompt, rude, rude) for _ in range(20)} == {"both_bad"}


def test_of_two_bad_answers_the_less_bad_is_sometimes_picked() -> None:
    prompt = prompt_of("coverage")
    rater = Rater(seed=4, noise=0.0)
    curt, rude = answer_to(prompt, "curt"), answer_to(prompt, "rude")
    choices = Counter(rater.choose(prompt, curt, rude) for _ in range(400))
    assert choices.keys() == {"both_bad", "left"}
    assert 160 < choices["left"] < 240


def test_noise_is_the_share_of_wrong_judgements() -> None:
    prompt = prompt_of("coverage")
    good, rude = answer_to(prompt, "courteous"), answer_to(prompt, "rude")
    rater = Rater(seed=5, noise=0.2)
    # 1000 judgements: the standard deviation of the wrong ones is sqrt(1000 * 0.2 * 0.8) = 12.6
    assert 150 < sum(rater.rate(prompt, good).value == "down" for _ in range(1000)) < 250
    assert 150 < sum(rater.rate(prompt, rude).value == "up" for _ in range(1000)) < 250
    assert 150 < sum(rater.choose(prompt, good, rude) == "right" for _ in range(1000)) < 250
    with pytest.raises(ValueError, match=r"0\.5"):
        Rater(seed=1, noise=0.5)


def test_the_same_seed_and_calls_give_the_same_judgements() -> None:
    prompt = prompt_of("coverage")
    good, rude = answer_to(prompt, "courteous"), answer_to(prompt, "rude")
    one, two = Rater(seed=6, noise=0.3), Rater(seed=6, noise=0.3)
    assert [one.rate(prompt, good) for _ in range(50)] == [two.rate(prompt, good) for _ in range(50)]
    assert [one.choose(prompt, good, rude) for _ in range(50)] == [two.choose(prompt, good, rude) for _ in range(50)]


def test_every_flaw_has_a_rank_and_reasons_that_feedback_accepts() -> None:
    assert BADNESS.keys() == REASONS.keys()
    for flaw, reasons in REASONS.items():
        assert set(reasons) <= set(REASONS_UP if BADNESS[flaw] == 0 else REASONS_DOWN)


def test_customers_repeat_with_their_seed_and_ask_about_everything_in_training_values() -> None:
    customer, again, other = Customer(seed=1), Customer(seed=1), Customer(seed=2)
    prompts = [customer.next_prompt() for _ in range(800)]
    assert prompts == [again.next_prompt() for _ in range(800)]
    assert prompts[:20] != [other.next_prompt() for _ in range(20)]
    assert {prompt.intent for prompt in prompts} == set(INTENTS)
    values = itertools.chain.from_iterable(prompt.slots.items() for prompt in prompts)
    assert not any(is_held_out(value) for slot, value in values if slot not in CLOSED)
