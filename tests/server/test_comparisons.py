"""Comparisons over HTTP: blind, followed by anyone from the start, revealed by the choice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf_core.records import Comparison, Interaction, InteractionStatus, Message
from rlhf_core.store.connection import connect
from rlhf_core.store.feedback import FeedbackStore
from server.comparing import stored_events
from tests.server.conftest import Site, sse


def start(site: Site, **fields: object) -> str:
    body = {"messages": [{"role": "user", "content": "which?"}], "max_tokens": 12, **fields}
    response = site.http.post("/v1/comparisons", json=body)
    assert response.status_code == 201
    assert response.json()["slots"] == ["left", "right"]
    comparison_id: str = response.json()["comparison_id"]
    return comparison_id


def follow(site: Site, comparison_id: str) -> list[dict[str, Any]]:
    with site.http.stream("GET", f"/v1/comparisons/{comparison_id}/events") as response:
        return [json.loads(payload) for payload in sse(response.iter_lines())]


def text_of(events: list[dict[str, Any]], slot: str) -> str:
    return "".join(event.get("delta", "") for event in events if event.get("slot") == slot)


def test_both_sides_stream_and_a_late_reader_gets_all_of_it(site: Site) -> None:
    comparison_id = start(site)
    live = follow(site, comparison_id)
    shown = site.http.get(f"/v1/comparisons/{comparison_id}").json()
    stored = follow(site, comparison_id)
    assert live[-1] == stored[-1] == {"done": True}
    assert sorted(event["slot"] for event in live if "finish_reason" in event) == ["left", "right"]
    for slot in ("left", "right"):
        assert text_of(live, slot) == text_of(stored, slot) == shown["texts"][slot]


def test_it_is_blind_until_the_choice_and_a_change_after_it_does_not_train(site: Site) -> None:
    comparison_id = start(site, user="ada")
    events = follow(site, comparison_id)
    before = site.http.get(f"/v1/comparisons/{comparison_id}").json()
    path = f"/v1/comparisons/{comparison_id}/choice"
    first = site.http.put(path, json={"choice": "left", "reasons": ["clear"]})
    changed = site.http.put(path, json={"choice": "right"})
    after = site.http.get(f"/v1/comparisons/{comparison_id}").json()
    assert "chatcmpl" not in json.dumps([events, before])
    assert "version" not in json.dumps([events, before])
    assert (before["choice"], before["revealed"]) == (None, None)
    assert (first.status_code, changed.status_code) == (201, 200)
    assert first.json()["counted"]["training"] is True
    assert changed.json()["counted"]["training"] is False
    assert changed.json()["supersedes"] == first.json()["event_id"]
    assert after["choice"] == "right"
    sides = {slot: site.interactions.get(after["revealed"][slot]["interaction_id"]) for slot in ("left", "right")}
    assert {slot: side.response for slot, side in sides.items()} == after["texts"]
    assert {side.comparison_id for side in sides.values()} == {comparison_id}
    assert sides["left"].sampling.seed != sides["right"].sampling.seed


@pytest.mark.parametrize(("status", "said"), [("streaming", "right answer is still"), ("error", "right answer failed")])
def test_no_choice_while_a_side_streams_or_after_one_failed(site: Site, status: InteractionStatus, said: str) -> None:
    # Records as another server would have left them.
    left = Interaction(interaction_id=f"chatcmpl-left-{status}", created_at=1.0, status="done", response="yes")
    right = Interaction(interaction_id=f"chatcmpl-right-{status}", created_at=1.0, status=status)
    for side in (left, right):
        site.interactions.open(side)
    comparison = Comparison(
        comparison_id=f"cmp-{status}",
        created_at=1.0,
        rater="r",
        messages=(Message("user", "hi"),),
        left=left.interaction_id,
        right=right.interaction_id,
        side_seed=0,
    )
    FeedbackStore(connect(site.store.url)).open_comparison(comparison)
    for choice in ("left", "skip"):
        refused = site.http.put(f"/v1/comparisons/cmp-{status}/choice", json={"choice": choice})
        assert refused.status_code == 409
        assert said in refused.json()["detail"]
    events = follow(site, f"cmp-{status}")
    assert "error" in events[-1]
    assert {"done": True} not in events


def test_unknown_comparisons_and_bad_choices_are_problems(site: Site) -> None:
    comparison_id = start(site)
    follow(site, comparison_id)
    got = [
        site.http.get("/v1/comparisons/cmp-nothing"),
        site.http.get("/v1/comparisons/cmp-nothing/events"),
        site.http.put("/v1/comparisons/cmp-nothing/choice", json={"choice": "left"}),
        site.http.put(f"/v1/comparisons/{comparison_id}/choice", json={"choice": "up"}),
        site.http.post("/v1/comparisons", json={"messages": []}),
        site.http.post("/v1/comparisons", json={"messages": [{"role": "user", "content": ""}]}),
    ]
    assert [response.status_code for response in got] == [404, 404, 404, 422, 422, 422]
    assert {response.headers["content-type"] for response in got} == {"application/problem+json"}


def test_the_record_alone_tells_a_finished_side_from_a_failed_one() -> None:
    left = Interaction(interaction_id="l", created_at=0.0, status="done", response="yes", finish_reason="stop")
    right = Interaction(interaction_id="r", created_at=0.0, status="aborted", response="n")
    events = stored_events({"left": left, "right": right})
    assert events[:2] == [{"slot": "left", "delta": "yes"}, {"slot": "left", "finish_reason": "stop"}]
    assert events[2] == {"slot": "right", "delta": "n"}
    assert events[3]["error"]["code"] == "generation_failed"
    assert len(events) == 4
