"""The client against a real HTTP server with scripted answers."""

from __future__ import annotations

from contextlib import closing

import pytest

from rlhf_core.records import Message
from tests.running import free_port
from tests.ui.scripted_api import ANSWER, ScriptedApi
from ui.client import ApiClient, ApiError

HELLO = [Message("user", "hello")]


def test_a_stream_tells_its_interaction_from_the_first_event_and_adds_up_to_the_answer(client: ApiClient) -> None:
    events = list(client.chat_stream(HELLO, conversation_id="c1", user="ann"))
    assert {event.interaction_id for event in events} == {"chatcmpl-0000"}
    assert {event.policy_version for event in events} == {3}
    assert "".join(event.delta for event in events) == ANSWER
    assert [event.finish for event in events if event.finish] == ["stop"]


def test_a_request_carries_key_conversation_and_person(api: ScriptedApi, client: ApiClient) -> None:
    list(client.chat_stream(HELLO, conversation_id="c1", user="ann", temperature=0.0, max_tokens=7))
    _, _, headers, body = api.requests[0]
    assert headers["authorization"] == "Bearer sk-secret"
    assert body == {
        "model": "live",
        "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"conversation_id": "c1"},
        "user": "ann",
        "temperature": 0.0,
        "max_tokens": 7,
        "stream": True,
    }


def test_without_a_key_no_authorization_is_sent(api: ScriptedApi) -> None:
    with closing(ApiClient(api.url)) as keyless:
        keyless.status()
    assert "authorization" not in api.requests[0][2]


def test_a_whole_answer_names_its_interaction_and_version(client: ApiClient) -> None:
    answer = client.chat(HELLO)
    assert (answer.interaction_id, answer.text) == ("chatcmpl-0000", ANSWER)
    assert (answer.policy_version, answer.finish_reason) == (3, "stop")


def test_a_rating_can_be_set_changed_read_and_withdrawn(client: ApiClient) -> None:
    assert client.rate("chatcmpl-1", "up").state == "up"
    client.rate("chatcmpl-1", "down", ["too_long"], "on and on")
    rating = client.rating("chatcmpl-1")
    assert (rating.state, rating.reasons, rating.comment) == ("down", ("too_long",), "on and on")
    client.withdraw("chatcmpl-1")
    assert client.rating("chatcmpl-1").state is None


def test_an_answer_can_be_reported_and_the_report_taken_back(api: ScriptedApi, client: ApiClient) -> None:
    client.report("chatcmpl-1", "privacy", "my address")
    assert api.reports == {"chatcmpl-1": {"category": "privacy", "note": "my address"}}
    client.withdraw_report("chatcmpl-1")
    assert api.reports == {}


def test_another_rater_is_named_in_the_header(api: ScriptedApi, client: ApiClient) -> None:
    client.rate("chatcmpl-1", "up", rater="bob")
    client.rate("chatcmpl-1", "up")
    assert [headers.get("x-rater") for _, _, headers, _ in api.requests] == ["bob", None]


def test_ids_are_quoted_into_the_path(api: ScriptedApi, client: ApiClient) -> None:
    client.rating("a/../b?c")
    assert api.requests[0][1] == "/v1/interactions/a%2F..%2Fb%3Fc/rating"


def test_a_comparison_streams_both_sides_and_the_choice_reveals_them(client: ApiClient) -> None:
    comparison_id = client.compare(HELLO, user="ann")
    texts = {"left": "", "right": ""}
    events = list(client.comparison_events(comparison_id))
    for event in events:
        if event.slot:
            texts[event.slot] += event.delta
    assert texts == {"left": ANSWER + " ", "right": ANSWER.upper() + " "}
    assert events[-1].done
    revealed = client.choose(comparison_id, "left").revealed
    assert (revealed.left.policy_version, revealed.right.policy_version) == (3, 2)


def test_status_is_typed(client: ApiClient) -> None:
    status = client.status()
    assert status.live is not None
    assert status.live.policy_version == 3
    assert status.versions[1].seconds_to_first_token == pytest.approx(102)  # served at T+2, last feedback at T-100
    assert status.versions[1].measured("ref_kl") == 3.1  # from the gate
    assert status.versions[2].measured("ref_kl") == 4.9  # from the training


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ({"error": {"message": "the prompt is too long", "type": "invalid_request_error"}}, "The prompt is too long."),
        ({"title": "Conflict", "detail": "the answer is still streaming"}, "The answer is still streaming."),
        ({"title": "Not Found"}, "Not Found."),
        (["what"], "The API answered with status 409."),
    ],
)
def test_either_error_shape_becomes_one_sentence(
    api: ScriptedApi, client: ApiClient, body: dict[str, object], sentence: str
) -> None:
    api.refuse["/completions"] = (409, body)
    with pytest.raises(ApiError) as refused:
        list(client.chat_stream(HELLO))
    assert (str(refused.value), refused.value.status) == (sentence, 409)


def test_an_error_inside_a_stream_is_raised_after_what_came_before(api: ScriptedApi, client: ApiClient) -> None:
    api.break_with = {"error": {"message": "the engine has stopped", "code": "generation_failed"}}
    events = client.chat_stream(HELLO)
    assert next(events).delta == "Please"
    with pytest.raises(ApiError, match=r"^The engine has stopped\.$"):
        next(events)


def test_a_stream_that_ends_without_a_finish_reason_is_an_error(api: ScriptedApi, client: ApiClient) -> None:
    api.break_with = {}
    with pytest.raises(ApiError, match="broke off before its end"):
        list(client.chat_stream(HELLO))


def test_an_answer_of_an_unexpected_shape_is_an_error_with_the_path(api: ScriptedApi, client: ApiClient) -> None:
    api.refuse["/status"] = (200, {"live": "yes"})
    with pytest.raises(ApiError, match="GET /v1/status has an unexpected shape"):
        client.status()


def test_an_api_that_is_down_is_one_sentence_with_its_address() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    with closing(ApiClient(url)) as client, pytest.raises(ApiError) as refused:
        client.status()
    assert (str(refused.value), refused.value.status) == (f"The API at {url} is not reachable.", 0)
