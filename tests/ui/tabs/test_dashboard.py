"""The dashboard's tables, and the tick that sends only news."""

from __future__ import annotations

from typing import Any

from tests.ui.scripted_api import ScriptedApi
from ui.app import PANELS, tick
from ui.client import ApiClient
from ui.replies import Status
from ui.tabs.dashboard import dashboard_panels, outcomes_html, versions_html


def unchanged(drawn: tuple[Any, ...]) -> list[bool]:
    return [isinstance(value, dict) and set(value) == {"__type__"} for value in drawn]


def test_a_row_tells_approval_accuracy_kl_gate_and_delay(client: ApiClient) -> None:
    html = versions_html(client.status())
    newest, middle, first = html.split("<tr>")[2:]
    assert "live" in newest
    assert "collecting… 4 of 10" in newest
    for told in ("67 %", "58 % to 74 %, n 120", "81 %", "3.10", "accepted", "1 min 42 s"):
        assert told in middle
    assert "no gate" in first


def test_a_rejected_candidate_is_listed_once_with_its_reasons(client: ApiClient) -> None:
    html = outcomes_html(client.status())
    assert html.count("<li><span") == 1
    assert "only 71 % of answers end" in html
    assert "1 min 35 s" in html


def test_empty_states_say_what_to_do() -> None:
    plot, hint, versions, outcomes = dashboard_panels(Status())
    assert plot["visible"] is False
    assert "Rate answers in the Chat tab" in hint["value"]
    assert "The server publishes the first one" in versions
    assert "how much feedback starts the next one" in outcomes


def test_a_tick_sends_only_what_changed(api: ScriptedApi, client: ApiClient) -> None:
    seen: dict[str, Any] = {}
    assert unchanged(tick(client, seen)) == [False] * (1 + PANELS)
    assert unchanged(tick(client, seen)) == [True] * (1 + PANELS)
    api.status["feedback"]["until_reward"] = 82
    assert unchanged(tick(client, seen)) == [False] + [True] * PANELS
    assert len(api.requests) == 3


def test_a_tick_without_the_api_keeps_the_last_figures(api: ScriptedApi, client: ApiClient) -> None:
    seen: dict[str, Any] = {}
    tick(client, seen)
    api.refuse["/status"] = (503, {"detail": "the store did not answer"})
    strip, *panels = tick(client, seen)
    assert "API not reachable, retrying" in strip
    assert unchanged(tuple(panels)) == [True] * PANELS
