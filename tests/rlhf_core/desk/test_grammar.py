"""The desk's grammar: every answer it can make is read back as what it is, and as nothing else."""

import itertools
import random
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from rlhf_core.desk import slots
from rlhf_core.desk.grammar import (
    INTENTS,
    Recognition,
    answer_parts,
    fill,
    grammar_hash,
    greatest_4gram_repeat,
    manner_shares,
    recognise,
    slots_in,
    slots_repeated_rightly,
)
from rlhf_core.desk.phrases import Manner


def every_answer(intent: str, manner: Manner) -> Iterator[tuple[str, dict[str, str]]]:
    """Each way to put an opener, a body and a closer together, with fresh slot values in each."""
    rng = random.Random(f"{intent} {manner}")
    parts = answer_parts(intent, manner)
    for pieces in itertools.product(parts.openers, parts.bodies, parts.closers):
        template = " ".join(piece for piece in pieces if piece)
        values = {slot: slots.draw(slot, rng, held_out=rng.random() < 0.5) for slot in slots_in(template)}
        yield fill(template, values), values


@pytest.mark.parametrize("intent", INTENTS)
def test_every_answer_is_recognised_in_its_manner_with_its_slots(intent: str) -> None:
    for manner in manner_shares(INTENTS[intent]):
        for answer, values in every_answer(intent, manner):
            recognition = recognise(intent, f" {answer}\n")
            assert recognition is not None, answer
            assert (recognition.manner, recognition.slots) == (manner, values), answer
            assert slots_repeated_rightly(recognition, values) is (True if values else None)


@pytest.mark.parametrize("intent", INTENTS)
def test_no_answer_repeats_itself_or_runs_long(intent: str) -> None:
    for manner in manner_shares(INTENTS[intent]):
        for answer, _ in every_answer(intent, manner):
            assert greatest_4gram_repeat(answer) <= 2, answer
            assert len(answer.split()) <= (60 if manner == "rambling" else 46), answer


def test_a_courteous_answer_to_one_intent_fits_no_other() -> None:
    answers = {key: next(every_answer(key, "courteous"))[0] for key in INTENTS if INTENTS[key].kind != "outside"}
    strays = [
        (own, other)
        for own, answer in answers.items()
        for other in INTENTS
        if other != own and recognise(other, answer)
    ]
    assert strays == []


def test_changed_answers_are_not_recognised() -> None:
    answer = next(every_answer("late_fee", "courteous"))[0]
    assert recognise("late_fee", answer) is not None
    for changed in (answer[:-1], answer + " Goodbye.", answer.replace(" ", "  ", 1), answer.lower(), ""):
        assert recognise("late_fee", changed) is None


def test_a_wrong_copy_is_still_read_and_told_apart() -> None:
    answer = "Thank you for getting in touch, Tarvo. I have cancelled order 71524, and you will not be charged."
    recognition = recognise("order_cancel", answer)
    assert recognition == Recognition("courteous", (("name", "Tarvo"), ("order", "71524")))
    assert slots_repeated_rightly(recognition, {"name": "Tarvo", "order": "71524"}) is True
    assert slots_repeated_rightly(recognition, {"name": "Tarvo", "order": "71542"}) is False
    assert slots_repeated_rightly(recognition, {"name": "Tarvo"}) is False


def test_a_value_said_twice_must_be_right_both_times() -> None:
    assert (
        slots_repeated_rightly(Recognition("courteous", (("name", "Ada"), ("name", "Ida"))), {"name": "Ida"}) is False
    )


def test_the_greatest_4gram_repeat_counts_overlapping_runs() -> None:
    assert greatest_4gram_repeat("one two three") == 0
    assert greatest_4gram_repeat("one two three four") == 1
    # six words "a" hold three runs of four: words 1-4, 2-5 and 3-6
    assert greatest_4gram_repeat("a a a a a a") == 3
    # "go to the desk" starts at words 1 and 6
    assert greatest_4gram_repeat("go to the desk and go to the desk") == 2


def test_there_are_enough_intents_of_every_kind() -> None:
    kinds = [intent.kind for intent in INTENTS.values()]
    assert kinds.count("ordinary") + kinds.count("trouble") >= 44
    assert kinds.count("talk") >= 4
    assert kinds.count("outside") >= 2
    assert kinds.count("unsafe") >= 5
    assert all(len(intent.asks) >= 4 for intent in INTENTS.values())


def test_every_ask_can_be_answered_in_every_manner_without_inventing_a_value() -> None:
    for intent in INTENTS.values():
        for manner, ask in itertools.product(manner_shares(intent), intent.asks):
            parts = answer_parts(intent.key, manner)
            for part in (parts.openers, parts.bodies, parts.closers):
                assert any(set(slots_in(text)) <= set(slots_in(ask)) for text in part), (
                    intent.key,
                    manner,
                    ask,
                )


def test_slot_values_stand_after_a_space() -> None:
    """So that a value is the same tokens in the question and in the answer."""
    for intent in INTENTS.values():
        bodies = [text for manner in manner_shares(intent) for text in answer_parts(intent.key, manner).bodies]
        openers = [text for manner in manner_shares(intent) for text in answer_parts(intent.key, manner).openers]
        for text in (*intent.asks, *bodies, *openers):
            assert re.search(r"(^|[^ ])\{", text) is None, text


def test_the_manner_shares_sum_to_one() -> None:
    for intent in INTENTS.values():
        assert sum(manner_shares(intent).values()) == pytest.approx(1.0)


def test_only_unsafe_requests_have_unsafe_answers() -> None:
    with pytest.raises(KeyError, match="late_fee"):
        answer_parts("late_fee", "unsafe")
    assert answer_parts("unsafe_pin", "unsafe").bodies


def test_the_grammar_hash_is_the_same_in_another_process_and_needs_no_torch() -> None:
    code = "import sys; import rlhf_core.desk.raters; from rlhf_core.desk.grammar import grammar_hash; "
    code += "print(grammar_hash(), 'torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert printed.stdout.split() == [grammar_hash(), "False"]
