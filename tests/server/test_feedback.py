"""Ratings and conversations over HTTP."""

from __future__ import annotations

import uuid

import httpx
import pytest

from tests.server.conftest import Site, chat_body, eventually


def rate(site: Site, interaction_id: str, body: object, rater: str | None = None) -> httpx.Response:
    headers = {"x-rater": rater} if rater else {}
    return site.http.put(f"/v1/interactions/{interaction_id}/rating", json=body, headers=headers)


@pytest.fixture
def answered(site: Site) -> str:
    interaction_id: str = site.chat(user=uuid.uuid4().hex).headers["x-interaction-id"]
    return interaction_id


def test_a_rating_is_set_repeated_changed_and_taken_back(site: Site, answered: str) -> None:
    path = f"/v1/interactions/{answered}/rating"
    first = rate(site, answered, {"value": "up"})
    again = rate(site, answered, {"value": "up"})
    changed = rate(site, answered, {"value": "down", "reasons": ["tone"], "comment": "curt"})
    assert (first.status_code, again.status_code, changed.status_code) == (201, 200, 200)
    assert first.json()["counted"] == {"training": True, "stats": True}
    assert first.json()["policy_version"] == 1
    assert again.json()["event_id"] == first.json()["event_id"]
    assert changed.json()["supersedes"] == first.json()["event_id"]
    shown = site.http.get(path).json()
    assert (shown["state"], shown["reasons"], shown["comment"]) == ("down", ["tone"], "curt")
    assert [site.http.delete(path).status_code for _ in range(2)] == [204, 204]
    assert site.http.get(path).json()["state"] is None


def test_each_rater_has_a_rating_of_their_own(site: Site, answered: str) -> None:
    rate(site, answered, {"value": "up"}, "ada")
    rate(site, answered, {"value": "down"}, "bob")
    path = f"/v1/interactions/{answered}/rating"
    states = [site.http.get(path, headers={"x-rater": name}).json()["state"] for name in ("ada", "bob", "eve")]
    assert states == ["up", "down", None]


def test_an_answer_that_streams_cannot_be_rated_yet(site: Site) -> None:
    body = chat_body(stream=True, ignore_eos=True, max_tokens=4000)
    with site.http.stream("POST", "/v1/chat/completions", json=body) as response:
        interaction_id = response.headers["x-interaction-id"]
        refused = rate(site, interaction_id, {"value": "up"})
    assert refused.status_code == 409
    assert refused.headers["content-type"] == "application/problem+json"
    eventually(lambda: site.interactions.get(interaction_id).status == "aborted")
    # A partial answer may be rated, but nobody learns from it.
    assert rate(site, interaction_id, {"value": "up"}).json()["counted"]["training"] is False


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"value": "sideways"}, "'sideways'"),
        ({"value": 1}, "value is 1"),
        ({}, "`value`"),
        ({"value": "up", "grade": 3}, "`grade`"),
        ({"value": "up", "reasons": ["pretty"]}, "'pretty'"),
        ({"value": "up", "reasons": ["tone"] * 6}, "reasons is"),
        ({"value": "up", "comment": "x" * 4001}, "comment is"),
    ],
)
def test_a_bad_body_is_a_problem_that_names_the_value(
    site: Site, answered: str, body: dict[str, object], named: str
) -> None:
    response = rate(site, answered, body)
    problem = response.json()
    assert (response.status_code, problem["status"]) == (422, 422)
    assert response.headers["content-type"] == "application/problem+json"
    assert named in problem["detail"]


def test_what_does_not_exist_or_does_not_parse_is_a_problem_too(site: Site, answered: str) -> None:
    path = f"/v1/interactions/{answered}/rating"
    got = [
        rate(site, "chatcmpl-nothing", {"value": "up"}),
        site.http.get("/v1/interactions/chatcmpl-nothing/rating"),
        site.http.delete("/v1/interactions/chatcmpl-nothing/rating"),
        site.http.put(path, content=b'{"value":'),
        site.http.put(path, content=b" " * 40_000),
        site.http.post(path, json={"value": "up"}),
        site.http.get("/v1/nothing"),
    ]
    assert [response.status_code for response in got] == [404, 404, 404, 400, 413, 405, 404]
    assert {response.headers["content-type"] for response in got} == {"application/problem+json"}


def test_a_conversation_comes_back_with_its_ratings(site: Site) -> None:
    metadata = {"conversation_id": uuid.uuid4().hex}
    first = site.chat("one", metadata=metadata, user="ada").headers["x-interaction-id"]
    second = site.chat("two", metadata=metadata, user="ada").headers["x-interaction-id"]
    rate(site, first, {"value": "down", "reasons": ["too_long"]})
    shown = site.http.get(f"/v1/conversations/{metadata['conversation_id']}").json()["interactions"]
    assert [found["interaction_id"] for found in shown] == [first, second]
    assert shown[0]["messages"] == [{"role": "user", "content": "one"}]
    assert [found["rating"]["state"] for found in shown] == ["down", None]
    assert site.http.get("/v1/conversations/nothing").json()["interactions"] == []
