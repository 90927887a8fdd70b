"""The compare tab's handlers: blind until the choice, locked until both answers are there."""

from __future__ import annotations

from typing import Any

import pytest

from rlhf_core.records import ChoiceValue
from tests.ui.scripted_api import ANSWER, ScriptedApi
from ui.client import ApiClient
from ui.conversation import Conversation
from ui.replies import ChoiceReceipt, Revealed, RevealedSide
from ui.tabs.compare import CHOICES, Round, ask, choose, next_round, verdict

BUTTONS = slice(3, 3 + len(CHOICES))


def open_to_choice(drawn: tuple[Any, ...]) -> set[bool]:
    return {button["interactive"] for button in drawn[BUTTONS]}


def receipt(choice: ChoiceValue, left: int, right: int) -> ChoiceReceipt:
    sides = (RevealedSide(interaction_id=name, policy_version=version) for name, version in (("a", left), ("b", right)))
    return ChoiceReceipt(event_id="e", choice=choice, revealed=Revealed(left=next(sides), right=next(sides)))


def test_both_answers_stream_blind_and_open_the_choice_at_the_end(api: ScriptedApi, client: ApiClient) -> None:
    api.pause = 0.01
    shown = list(ask(client, Round(), Conversation(user="ann"), "hello"))
    assert [open_to_choice(drawn) for drawn in shown[:-1]] == [{False}] * (len(shown) - 1)
    assert open_to_choice(shown[-1]) == {True}
    assert ANSWER in shown[-1][0]
    assert ANSWER.upper() in shown[-1][1]
    assert not any("policy" in pane for drawn in shown for pane in drawn[:2])


def test_a_choice_is_stored_reveals_the_versions_and_locks(api: ScriptedApi, client: ApiClient) -> None:
    shown = Round()
    list(ask(client, shown, Conversation(user="ann"), "hello"))
    drawn = choose(client, shown, "left")
    assert "policy 3" in drawn[0]
    assert "policy 2" in drawn[1]
    assert "You preferred A: policy 3 over policy 2." in drawn[2]
    assert open_to_choice(drawn) == {False}
    sent = len(api.requests)
    choose(client, shown, "right")
    assert len(api.requests) == sent


def test_nothing_can_be_chosen_when_a_side_failed(api: ScriptedApi, client: ApiClient) -> None:
    api.refuse["/events"] = (503, {"detail": "the engine has stopped"})
    drawn = list(ask(client, Round(), Conversation(user="ann"), "hello"))[-1]
    assert "This round cannot be judged. The engine has stopped." in drawn[2]
    assert open_to_choice(drawn) == {False}
    assert drawn[-2]["visible"]


def test_a_choice_that_was_not_saved_stays_open(api: ScriptedApi, client: ApiClient) -> None:
    shown = Round()
    list(ask(client, shown, Conversation(user="ann"), "hello"))
    api.refuse["/choice"] = (503, {"detail": "the store did not answer"})
    drawn = choose(client, shown, "tie")
    assert "Not saved. The store did not answer." in drawn[2]
    assert open_to_choice(drawn) == {True}


def test_the_next_round_starts_empty(client: ApiClient) -> None:
    shown = Round()
    list(ask(client, shown, Conversation(user="ann"), "hello"))
    drawn = next_round(shown)
    assert ANSWER not in drawn[0]
    assert drawn[-1]["value"] == ""
    assert open_to_choice(drawn) == {False}


@pytest.mark.parametrize(
    ("choice", "left", "right", "sentence"),
    [
        ("right", 3, 2, "You preferred B: policy 2 over policy 3."),
        ("left", 3, 3, "You preferred A. Both came from policy 3."),
        ("tie", 3, 2, "You called it a tie. A was policy 3, B was policy 2."),
        ("both_bad", 3, 3, "You found both bad. Both came from policy 3."),
        ("skip", 3, 2, "Skipped. A was policy 3, B was policy 2."),
    ],
)
def test_the_verdict_says_what_was_chosen_and_what_was_where(
    choice: ChoiceValue, left: int, right: int, sentence: str
) -> None:
    assert verdict(receipt(choice, left, right)) == sentence
