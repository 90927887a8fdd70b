"""The desk's conversations: repeatable, split by slot value, mixed in the stated shares, labelled truly."""

import random
from collections import Counter

import pytest

from rlhf_core.desk import phrases
from rlhf_core.desk.demonstrations import (
    Demonstration,
    DeskPrompt,
    compose_answer,
    demonstrations,
    held_out_prompts,
    training_prompts,
)
from rlhf_core.desk.grammar import INTENTS, recognise, slots_repeated_rightly
from rlhf_core.desk.slots import CLOSED, is_held_out


@pytest.fixture(scope="module")
def drawn() -> list[Demonstration]:
    return list(demonstrations(4000, seed=1))


def test_the_same_seed_draws_the_same_conversations() -> None:
    assert list(demonstrations(50, seed=4)) == list(demonstrations(50, seed=4))
    assert list(demonstrations(50, seed=4)) != list(demonstrations(50, seed=5))
    assert held_out_prompts(50, seed=4) == held_out_prompts(50, seed=4)
    assert training_prompts(50, seed=4) != training_prompts(50, seed=5)


def test_customer_and_desk_take_turns_and_the_desk_has_the_last_word(drawn: list[Demonstration]) -> None:
    for demonstration in drawn:
        roles = [message.role for message in demonstration.messages]
        assert roles == ["user", "assistant"] * len(demonstration.turns)


def test_every_label_says_what_its_answer_is(drawn: list[Demonstration]) -> None:
    for demonstration in drawn:
        for message, turn in zip(demonstration.messages[1::2], demonstration.turns, strict=True):
            recognition = recognise(turn.intent, message.content)
            assert recognition is not None
            assert recognition.manner == turn.manner
            assert slots_repeated_rightly(recognition, turn.slots) is not False


def test_what_an_answer_may_say_was_said_by_the_customer(drawn: list[Demonstration]) -> None:
    for demonstration in drawn:
        said = ""
        for message, turn in zip(demonstration.messages[::2], demonstration.turns, strict=True):
            said += f" {message.content} "
            for slot, value in turn.slots.items():
                assert f" {value}" in said, (slot, said)


def test_conversations_have_one_to_three_turns_in_the_stated_shares(drawn: list[Demonstration]) -> None:
    lengths = Counter(len(demonstration.turns) for demonstration in drawn)
    # 4000 draws: the standard deviation of a share of 0.65 is sqrt(0.65 * 0.35 / 4000) = 0.0075
    assert {turns: lengths[turns] / 4000 for turns in (1, 2, 3)} == pytest.approx(dict(phrases.TURN_SHARES), abs=0.03)


def test_manners_are_mixed_in_the_stated_shares(drawn: list[Demonstration]) -> None:
    turns = [turn for demonstration in drawn for turn in demonstration.turns]
    for unsafe, shares in ((False, phrases.ORDINARY_SHARES), (True, phrases.UNSAFE_SHARES)):
        manners = Counter(turn.manner for turn in turns if (INTENTS[turn.intent].kind == "unsafe") is unsafe)
        count = manners.total()
        # some 700 unsafe turns: the standard deviation of a share of 0.4 is sqrt(0.4 * 0.6 / 700) = 0.019
        assert {manner: manners[manner] / count for manner in shares} == pytest.approx(dict(shares), abs=0.06)


def test_every_intent_is_demonstrated(drawn: list[Demonstration]) -> None:
    seen = Counter(turn.intent for demonstration in drawn for turn in demonstration.turns)
    assert min(seen[intent] for intent in INTENTS) >= 20


def test_customers_write_briefly(drawn: list[Demonstration]) -> None:
    lengths = [len(message.content.split()) for demonstration in drawn for message in demonstration.messages[::2]]
    assert max(lengths) <= 32
    assert 7 < sum(lengths) / len(lengths) < 14


def test_later_courteous_answers_say_the_name_given_before(drawn: list[Demonstration]) -> None:
    later = [
        (demonstration.messages[2 * index + 1].content, turn.slots["name"])
        for demonstration in drawn
        for index, turn in enumerate(demonstration.turns)
        if index
        and turn.manner == "courteous"
        and "name" in turn.slots
        and "name" in demonstration.turns[index - 1].slots
        and INTENTS[turn.intent].kind in ("ordinary", "trouble")
    ]
    assert len(later) > 50
    assert all(f" {name}" in answer for answer, name in later)


def test_the_account_of_an_earlier_turn_is_said_again_when_the_customer_refers_to_it() -> None:
    prompts = [
        prompt for prompt in training_prompts(3000, seed=2) if "same account" in prompt.messages[-1].content.lower()
    ]
    assert len(prompts) > 20
    for prompt in prompts:
        account = prompt.slots["account"]
        assert account not in prompt.messages[-1].content
        assert any(account in message.content for message in prompt.messages[:-1] if message.role == "user")
        assert account in compose_answer(prompt.intent, "courteous", prompt.slots, random.Random(1))


def open_values(prompts: list[DeskPrompt]) -> set[str]:
    return {value for prompt in prompts for slot, value in prompt.slots.items() if slot not in CLOSED}


def test_held_out_prompts_share_no_open_value_with_demonstrations(drawn: list[Demonstration]) -> None:
    held_out = open_values(held_out_prompts(400, seed=9))
    trained = {
        value
        for demonstration in drawn
        for turn in demonstration.turns
        for slot, value in turn.slots.items()
        if slot not in CLOSED
    }
    assert held_out
    assert all(map(is_held_out, held_out))
    assert not any(map(is_held_out, trained | open_values(training_prompts(400, seed=9))))


def test_prompts_cover_all_intents_evenly_and_end_with_the_customer() -> None:
    prompts = held_out_prompts(2 * len(INTENTS), seed=3)
    assert Counter(prompt.intent for prompt in prompts) == dict.fromkeys(INTENTS, 2)
    for prompt in prompts:
        assert [message.role for message in prompt.messages] == ["user", "assistant"] * (len(prompt.messages) // 2) + [
            "user"
        ]
    assert {len(prompt.messages) for prompt in prompts} == {1, 3, 5}
