"""The chat tab's handlers, called as Gradio calls them, against the scripted API."""

from __future__ import annotations

from typing import Any

from rlhf_core.records import Message
from tests.ui.scripted_api import ANSWER, ScriptedApi
from ui.client import ApiClient
from ui.conversation import Conversation
from ui.tabs.chat import Drawn, act, frames, restore, send, start_over, stop

KEPT = {"user": "ann", "conversation_id": "c1"}


def said(client: ApiClient, *prompts: str) -> Conversation:
    conversation = Conversation()
    for prompt in prompts:
        list(send(client, conversation, KEPT, prompt))
    return conversation


def click(client: ApiClient, conversation: Conversation, name: str, **data: Any) -> str:
    interaction_id = conversation.turns[-1].interaction_id
    return act(client, conversation, {"act": name, "interaction_id": interaction_id, **data})


def refusal(sentence: str) -> tuple[int, dict[str, str]]:
    return 503, {"title": "Service Unavailable", "detail": sentence}


def test_an_answer_grows_and_ends_with_thumbs(api: ScriptedApi, client: ApiClient) -> None:
    api.pause = 0.01
    shown: list[Drawn] = list(send(client, Conversation(), KEPT, " hello "))
    assert "Answering" in shown[0][0]
    assert len({html for html, *_ in shown}) > 2
    assert ANSWER in shown[-1][0]
    assert 'aria-label="Good response"' in shown[-1][0]
    assert 'aria-label="Good response"' not in shown[0][0]


def test_an_empty_prompt_asks_nothing(api: ScriptedApi, client: ApiClient) -> None:
    conversation = said(client, "   \n ")
    assert conversation.turns == []
    assert api.requests == []


def test_a_prompt_sent_while_an_answer_streams_is_given_back(client: ApiClient) -> None:
    conversation = Conversation()
    answering = send(client, conversation, KEPT, "one")
    next(answering)
    (_, prompt, *_), *rest = send(client, conversation, KEPT, "two")
    assert (prompt["value"], rest) == ("two", [])
    list(answering)
    assert [turn.prompt for turn in conversation.turns] == ["one"]


def test_the_next_prompt_carries_the_turns_before(api: ScriptedApi, client: ApiClient) -> None:
    said(client, "one", "two")
    assert [message["content"] for message in api.requests[-1][3]["messages"]] == ["one", ANSWER, "two"]


def test_a_failed_turn_says_why_and_gives_the_prompt_back(api: ScriptedApi, client: ApiClient) -> None:
    api.refuse["/completions"] = (429, {"error": {"message": "the waiting queue is full"}})
    conversation = Conversation()
    html, prompt, *_ = list(send(client, conversation, KEPT, "hello"))[-1]
    assert "The waiting queue is full." in html
    assert prompt["value"] == "hello"
    assert conversation.messages("again") == [Message("user", "again")]


def test_stop_keeps_what_was_said(api: ScriptedApi, client: ApiClient) -> None:
    api.pause = 0.02
    conversation = Conversation()
    answering = send(client, conversation, KEPT, "hello")
    while not conversation.turns or len(conversation.turns[-1].answer) < 6:
        next(answering)
    stop(conversation)
    html = list(answering)[-1][0]
    assert conversation.turns[-1].state == "stopped"
    assert ANSWER.startswith(conversation.turns[-1].answer)
    assert conversation.turns[-1].answer != ANSWER
    assert "stopped" in html


def test_a_new_conversation_is_not_overwritten_by_the_old_ones_last_words(api: ScriptedApi, client: ApiClient) -> None:
    api.pause = 0.02
    conversation = Conversation()
    answering = send(client, conversation, KEPT, "hello")
    next(answering)
    fresh, html, kept = start_over(conversation)
    assert list(answering)[-1][0] == html
    assert kept == {"user": "ann", "conversation_id": fresh.conversation_id}
    assert fresh.conversation_id != "c1"


def test_a_thumb_is_stored_changed_and_withdrawn(client: ApiClient) -> None:
    conversation = said(client, "hello")
    interaction_id = conversation.turns[0].interaction_id
    html = click(client, conversation, "rate", value="up")
    assert client.rating(interaction_id).state == "up"
    assert html.count('aria-pressed="true"') == 1
    click(client, conversation, "rate", value="down")
    assert client.rating(interaction_id).state == "down"
    html = click(client, conversation, "rate", value="down")
    assert client.rating(interaction_id).state is None
    assert 'aria-pressed="true"' not in html
    assert "Rating withdrawn." in html


def test_undo_withdraws(client: ApiClient) -> None:
    conversation = said(client, "hello")
    click(client, conversation, "rate", value="up")
    click(client, conversation, "undo")
    assert client.rating(conversation.turns[0].interaction_id).state is None


def test_a_reason_is_stored_with_the_thumb_and_cleared_by_the_other_thumb(client: ApiClient) -> None:
    conversation = said(client, "hello")
    interaction_id = conversation.turns[0].interaction_id
    click(client, conversation, "rate", value="down")
    assert "What was wrong with it?" in click(client, conversation, "explain")
    click(client, conversation, "reasons", reasons=["too_long", "no such key"], comment=" on and on ")
    stored = client.rating(interaction_id)
    assert (stored.state, stored.reasons, stored.comment) == ("down", ("too_long",), "on and on")
    click(client, conversation, "rate", value="up")
    stored = client.rating(interaction_id)
    assert (stored.state, stored.reasons, stored.comment) == ("up", (), "")


def test_a_rating_that_was_not_saved_leaves_the_thumb_as_it_was(api: ScriptedApi, client: ApiClient) -> None:
    conversation = said(client, "hello")
    click(client, conversation, "rate", value="up")
    api.refuse["/rating"] = refusal("the store did not answer")
    html = click(client, conversation, "rate", value="down")
    assert "Not saved. The store did not answer." in html
    assert conversation.turns[0].rating == "up"


def test_a_click_on_an_answer_of_another_conversation_does_nothing(api: ScriptedApi, client: ApiClient) -> None:
    conversation = said(client, "hello")
    before = len(api.requests)
    act(client, conversation, {"act": "rate", "interaction_id": "chatcmpl-of-somebody-else", "value": "up"})
    assert len(api.requests) == before


def test_a_reload_restores_turns_thumbs_and_reasons(client: ApiClient) -> None:
    conversation = said(client, "one", "two")
    click(client, conversation, "rate", value="down")
    click(client, conversation, "reasons", reasons=["tone"], comment="rude")
    restored = Conversation()
    html, kept = restore(client, restored, KEPT)
    assert [(turn.prompt, turn.answer, turn.rating) for turn in restored.turns] == [
        ("one", ANSWER, None),
        ("two", ANSWER, "down"),
    ]
    assert (restored.turns[1].reasons, restored.turns[1].comment) == (("tone",), "rude")
    assert html.count('aria-pressed="true"') == 1
    assert kept == KEPT


def test_a_first_visit_gets_a_name_and_a_conversation(api: ScriptedApi, client: ApiClient) -> None:
    fresh = Conversation()
    html, kept = restore(client, fresh, None)
    assert kept == {"user": fresh.user, "conversation_id": fresh.conversation_id}
    assert kept["user"].startswith("web-")
    assert "What can the desk do for you?" in html
    assert api.requests == []


def test_a_conversation_that_cannot_be_loaded_says_so_and_is_taken_up_by_the_next_message(
    api: ScriptedApi, client: ApiClient
) -> None:
    said(client, "one")
    api.refuse["/c1"] = refusal("the store did not answer")
    conversation = Conversation()
    html, kept = restore(client, conversation, KEPT)
    assert kept == KEPT
    assert "The store did not answer." in html
    api.refuse.clear()
    html = list(send(client, conversation, KEPT, "two"))[-1][0]
    assert [turn.prompt for turn in conversation.turns] == ["one", "two"]
    assert "The store did not answer." not in html


def test_a_message_sent_before_the_page_has_loaded_is_not_lost(client: ApiClient) -> None:
    conversation = Conversation()
    answering = send(client, conversation, None, "hello")
    next(answering)
    html, _ = restore(client, conversation, None)
    assert "hello" in html
    assert "hello" in list(answering)[-1][0]


def test_frames_drop_what_comes_too_fast() -> None:
    assert len(list(frames([None] * 1000, seconds=3600.0))) == 1
    assert len(list(frames([None] * 5, seconds=0.0))) == 5


def test_an_answer_is_reported_shown_as_such_after_a_reload_and_taken_back(api: ScriptedApi, client: ApiClient) -> None:
    conversation = said(client, "hello")
    interaction_id = conversation.turns[-1].interaction_id
    shown = click(client, conversation, "report")
    assert "What is wrong with this answer?" in shown
    assert "Take the report back" not in shown
    shown = click(client, conversation, "send-report", reasons=["privacy"], comment=" my address ")
    assert api.reports == {interaction_id: {"category": "privacy", "note": "my address"}}
    assert "Reported to the moderators." in shown
    assert "What is wrong with this answer?" not in shown
    reloaded = Conversation()
    restore(client, reloaded, {"user": "ann", "conversation_id": conversation.conversation_id})
    shown = click(client, reloaded, "report")
    assert ">Reported</button>" in shown
    assert 'value="privacy" checked' in shown
    assert "my address</textarea>" in shown
    shown = click(client, reloaded, "unreport")
    assert api.reports == {}
    assert "Report taken back." in shown
    assert ">Report</button>" in shown


def test_a_report_that_names_nothing_is_not_sent(api: ScriptedApi, client: ApiClient) -> None:
    conversation = said(client, "hello")
    click(client, conversation, "report")
    for reasons in ([], ["pretty"]):
        shown = click(client, conversation, "send-report", reasons=reasons, comment="it knows my name")
        assert "Choose what is wrong with the answer first." in shown
        assert "What is wrong with this answer?" in shown
        assert "it knows my name</textarea>" in shown
    assert api.reports == {}


def test_a_report_that_the_api_does_not_take_stays_in_its_panel(api: ScriptedApi, client: ApiClient) -> None:
    conversation = said(client, "hello")
    click(client, conversation, "report")
    api.refuse["/reports"] = refusal("the store is away")
    shown = click(client, conversation, "send-report", reasons=["privacy"], comment="it knows my name")
    assert "Not saved. The store is away." in shown
    assert 'value="privacy" checked' in shown
    assert "it knows my name</textarea>" in shown
    # Closed and opened again it holds what is stored, which is nothing.
    click(client, conversation, "close")
    assert "it knows my name" not in click(client, conversation, "report")


def test_one_panel_is_open_at_a_time_and_a_report_leaves_the_rating_alone(api: ScriptedApi, client: ApiClient) -> None:
    conversation = said(client, "hello")
    click(client, conversation, "rate", value="down")
    click(client, conversation, "explain")
    shown = click(client, conversation, "report")
    assert "What was wrong with it?" not in shown
    assert "What is wrong with this answer?" in shown
    shown = click(client, conversation, "send-report", reasons=["other"])
    assert conversation.turns[-1].rating == "down"
    assert ">Undo your rating</button>" in shown  # for it stands beside a sentence on the report
    assert ">Add a reason</button>" in shown
    assert "What is wrong with this answer?" not in click(client, conversation, "close")
