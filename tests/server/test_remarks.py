"""Reports and reviews over HTTP."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from tests.server.conftest import Site


@pytest.fixture
def answered(site: Site) -> str:
    interaction_id: str = site.chat("hello", user=uuid.uuid4().hex).headers["x-interaction-id"]
    return interaction_id


def test_an_answer_is_reported_listed_reviewed_and_the_report_taken_back(site: Site, answered: str) -> None:
    path = f"/v1/interactions/{answered}/reports"
    made = site.http.post(path, json={"category": "toxic", "note": "it insults me"}, headers={"x-rater": "ada"})
    assert (made.status_code, made.headers["location"]) == (202, path)
    assert (made.json()["category"], made.json()["policy_version"]) == ("toxic", 1)
    mine = site.http.get(path, headers={"x-rater": "ada"}).json()["reports"]
    assert [(each["category"], each["note"]) for each in mine] == [("toxic", "it insults me")]
    assert site.http.get(path, headers={"x-rater": "bob"}).json()["reports"] == []

    def listed(**query: str) -> list[dict[str, Any]]:
        reported = site.http.get("/v1/reports", params=query).json()["reported"]
        return [each for each in reported if each["interaction_id"] == answered]

    (shown,) = listed(waiting="true")
    assert shown["messages"] == [{"role": "user", "content": "hello"}]
    assert shown["response"] == site.interactions.get(answered).response
    assert [each["category"] for each in shown["reports"]] == ["toxic"]
    path_of_review, reviewer = f"/v1/interactions/{answered}/review", {"x-rater": "rev"}
    review = site.http.put(path_of_review, json={"toxicity": "ok", "accuracy": "flag"}, headers=reviewer)
    assert (review.status_code, review.json()["toxicity"], review.json()["bias"]) == (200, "ok", None)
    assert site.http.get(path_of_review, headers=reviewer).json()["accuracy"] == "flag"
    assert listed(waiting="true") == []
    assert [each["reviews"] for each in listed()] == [1]
    assert [site.http.delete(path, headers={"x-rater": "ada"}).status_code for _ in range(2)] == [204, 204]
    assert listed() == []
    assert site.http.delete(path_of_review, headers=reviewer).status_code == 204
    assert site.http.get(path_of_review, headers=reviewer).json()["event_id"] is None


def test_who_asked_does_not_review_the_answer(site: Site, answered: str) -> None:
    refused = site.http.put(f"/v1/interactions/{answered}/review", json={"toxicity": "ok"})
    assert refused.status_code == 422
    assert "header x-rater" in refused.json()["detail"]


def test_reports_and_reviews_are_counted(site: Site, answered: str) -> None:
    series = [f'feedback_total{{kind="{kind}"}}' for kind in ("report", "review")]
    site.http.post(f"/v1/interactions/{answered}/reports", json={"category": "other"})
    site.http.put(f"/v1/interactions/{answered}/review", json={"bias": "ok"}, headers={"x-rater": "rev"})
    before = [site.metric(name) for name in series]
    site.http.post(f"/v1/interactions/{answered}/reports", json={"category": "bias"})
    site.http.put(f"/v1/interactions/{answered}/review", json={"bias": "flag"}, headers={"x-rater": "rev"})
    assert [site.metric(name) for name in series] == [count + 1 for count in before]


@pytest.mark.parametrize(
    ("method", "where", "body", "named"),
    [
        ("POST", "reports", {"category": "rude"}, "'rude'"),
        ("POST", "reports", {}, "`category`"),
        ("POST", "reports", {"category": "toxic", "note": "x" * 4001}, "note is"),
        ("POST", "reports", {"category": "toxic", "value": "down"}, "`value`"),
        ("PUT", "review", {}, "ok or flag of one of accuracy, toxicity, bias, unhelpfulness"),
        ("PUT", "review", {"note": "fine"}, "ok or flag of one of"),
        ("PUT", "review", {"accuracy": "good"}, "'good'"),
    ],
)
def test_a_bad_body_is_a_problem_that_names_the_value(
    site: Site, answered: str, method: str, where: str, body: dict[str, object], named: str
) -> None:
    headers = {"x-rater": "rev"}
    response = site.http.request(method, f"/v1/interactions/{answered}/{where}", json=body, headers=headers)
    assert response.headers["content-type"] == "application/problem+json"
    assert 400 <= response.status_code < 500
    assert named in response.json()["detail"]


def test_what_does_not_exist_is_a_problem_too(site: Site) -> None:
    got = [
        site.http.post("/v1/interactions/chatcmpl-nothing/reports", json={"category": "toxic"}),
        site.http.get("/v1/interactions/chatcmpl-nothing/reports"),
        site.http.put("/v1/interactions/chatcmpl-nothing/review", json={"bias": "ok"}),
        site.http.delete("/v1/interactions/chatcmpl-nothing/review"),
    ]
    assert [response.status_code for response in got] == [404] * 4
    assert site.http.get("/v1/reports", params={"limit": "many"}).status_code == 400
