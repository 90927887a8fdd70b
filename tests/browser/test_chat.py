"""A person at the screens: chat, rate, explain, reload, choose. In Chromium, against real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Site, Watched
from tests.running import free_port
from tests.ui.process import running_ui

pytestmark = pytest.mark.browser

INJECTION = "<script>alert(1)</script><img src=x onerror=alert(2)>${alert(3)}{{value}} </textarea>"
PROMPTS = ("my internet is so slow today.", "how do I reset my router?", "why is my bill so high this month?") * 2
RECORD_LENGTHS = """() => {
  window.lengths = [];
  const log = document.querySelector('#transcript');
  const record = () => {
    const last = [...log.querySelectorAll('.turn .answer')].pop();
    if (last) window.lengths.push(last.innerText.trim().length);
  };
  new MutationObserver(record).observe(log, { subtree: true, childList: true, characterData: true });
}"""


@pytest.fixture
def page(site: Site, watched: Watched) -> Page:
    return opened(watched.page, site.ui_url)


def opened(page: Page, url: str) -> Page:
    page.goto(url)
    expect(page.locator("#transcript .welcome")).to_be_visible()
    return page


def say(page: Page, text: str) -> str:
    """Send a message and wait for the whole answer; returns its interaction id."""
    turns = page.locator("#transcript .turn")
    before = turns.count()
    page.get_by_placeholder("Write a message").fill(text)
    page.keyboard.press("Enter")
    expect(turns).to_have_count(before + 1)
    expect(turns.last.get_by_label("Good response")).to_be_visible()
    interaction_id = turns.last.get_attribute("data-interaction")
    assert interaction_id
    return interaction_id


def pressed(page: Page, label: str, state: bool) -> None:
    thumb = page.locator("#transcript .turn").last.get_by_label(label)
    expect(thumb).to_have_attribute("aria-pressed", "true" if state else "false")


def last(page: Page, label: str) -> None:
    page.locator("#transcript .turn").last.get_by_role("button", name=label).click()


def test_an_answer_is_watched_as_it_grows(page: Page) -> None:
    page.evaluate(RECORD_LENGTHS)
    grown: set[int] = set()
    for prompt in PROMPTS:
        page.evaluate("window.lengths.length = 0")
        say(page, prompt)
        grown = {length for length in page.evaluate("window.lengths") if length}
        if len(grown) >= 3:
            return
    raise AssertionError(f"no answer of {len(PROMPTS)} appeared in at least three pieces; the last in {sorted(grown)}")


def test_a_rating_is_stored_changed_withdrawn_explained_and_survives_a_reload(page: Page, site: Site) -> None:
    interaction_id = say(page, PROMPTS[0])
    last(page, "Good response")
    pressed(page, "Good response", True)
    assert site.rating(interaction_id) == {"state": "up", "reasons": [], "comment": ""}
    last(page, "Bad response")
    pressed(page, "Bad response", True)
    pressed(page, "Good response", False)
    assert site.rating(interaction_id) == {"state": "down", "reasons": [], "comment": ""}
    last(page, "Undo")
    pressed(page, "Bad response", False)
    assert site.rating(interaction_id) == {"state": None, "reasons": [], "comment": ""}
    last(page, "Bad response")
    last(page, "Add a reason")
    page.get_by_text("Too long").click()
    page.get_by_label("Comment").fill(INJECTION)
    last(page, "Save reason")
    expect(page.get_by_text("Saved with your reason.")).to_be_visible()
    explained = {"state": "down", "reasons": ["too_long"], "comment": INJECTION}
    assert site.rating(interaction_id) == explained

    page.reload()
    pressed(page, "Bad response", True)
    expect(page.locator("#transcript .said")).to_have_text(PROMPTS[0])
    last(page, "Edit your reason")
    expect(page.get_by_label("Comment")).to_have_value(INJECTION)
    expect(page.get_by_role("checkbox", name="Too long")).to_be_checked()
    assert site.rating(interaction_id) == explained
    last(page, "Good response")
    pressed(page, "Good response", True)
    assert site.rating(interaction_id) == {"state": "up", "reasons": [], "comment": ""}


def test_an_answer_is_reported_and_stays_so_after_a_reload(page: Page, site: Site) -> None:
    interaction_id = say(page, PROMPTS[1])
    last(page, "Report")
    page.get_by_text("Insulting or hateful").click()
    page.get_by_label("Note").fill(INJECTION)
    last(page, "Send report")
    expect(page.get_by_text("Reported to the moderators.")).to_be_visible()
    (stored,) = site.api.get(f"/v1/interactions/{interaction_id}/reports").json()["reports"]
    assert (stored["category"], stored["note"]) == ("toxic", INJECTION)
    page.reload()
    last(page, "Reported")
    expect(page.get_by_role("radio", name="Insulting or hateful")).to_be_checked()
    last(page, "Take the report back")
    expect(page.get_by_text("Report taken back.")).to_be_visible()
    assert site.api.get(f"/v1/interactions/{interaction_id}/reports").json()["reports"] == []


def test_a_rating_works_by_keyboard_and_keeps_the_focus(page: Page, site: Site) -> None:
    interaction_id = say(page, PROMPTS[1])
    thumb = page.locator("#transcript .turn").last.get_by_label("Bad response")
    thumb.focus()
    page.keyboard.press("Enter")
    pressed(page, "Bad response", True)
    expect(thumb).to_be_focused()
    page.keyboard.press("g")
    pressed(page, "Good response", True)
    assert site.rating(interaction_id)["state"] == "up"


def test_two_quick_clicks_end_at_the_second(page: Page, site: Site) -> None:
    interaction_id = say(page, PROMPTS[1])
    turn = page.locator("#transcript .turn").last
    turn.get_by_label("Good response").click(no_wait_after=True)
    turn.get_by_label("Bad response").click(no_wait_after=True)
    pressed(page, "Bad response", True)
    pressed(page, "Good response", False)
    assert site.rating(interaction_id)["state"] == "down"


def test_markup_in_a_message_is_shown_as_text_and_never_runs(page: Page) -> None:
    say(page, INJECTION)
    expect(page.locator("#transcript .said")).to_have_text(INJECTION)
    assert page.locator("#transcript img, #transcript script").count() == 0


def test_a_blind_choice_is_stored_and_then_revealed(page: Page) -> None:
    page.get_by_role("tab", name="Compare").click()
    expect(page.locator("#choose-left")).to_be_disabled()
    page.get_by_placeholder("A prompt for both").fill(PROMPTS[0])
    page.get_by_role("button", name="Ask both").click()
    expect(page.locator("#choose-left")).to_be_enabled()
    panes = page.locator("#panes")
    assert "policy" not in panes.inner_text()
    page.locator("#choose-left").click()
    expect(page.locator("#verdict")).to_contain_text("You preferred A. Both came from policy 1.")
    assert panes.inner_text().count("policy 1") == 2
    expect(page.locator("#choose-left")).to_be_disabled()
    page.get_by_role("button", name="Next round").click()
    expect(page.locator("#verdict")).to_contain_text("Write a prompt")


def test_a_new_conversation_starts_empty_and_stays_after_a_reload(page: Page) -> None:
    say(page, PROMPTS[0])
    page.get_by_role("button", name="New conversation").click()
    expect(page.locator("#transcript .welcome")).to_be_visible()
    page.reload()
    expect(page.locator("#transcript .welcome")).to_be_visible()
    expect(page.locator("#transcript .turn")).to_have_count(0)


def test_an_example_prompt_is_sent_and_an_empty_message_is_not(page: Page) -> None:
    page.get_by_role("button", name="Send", exact=True).click()
    page.get_by_role("button", name="How do I reset my router?").click()
    expect(page.locator("#transcript .said")).to_have_text("How do I reset my router?")
    expect(page.get_by_label("Good response")).to_be_visible()


def test_the_strip_and_the_dashboard_follow_the_api(page: Page) -> None:
    expect(page.locator("#strip")).to_contain_text("Policy 1 is live since")
    expect(page.locator("#strip")).to_contain_text("Reward update in")
    page.get_by_role("tab", name="Dashboard").click()
    expect(page.locator("#versions")).to_contain_text("collecting…")


@pytest.fixture
def lonely(watched: Watched, tmp_path: Path) -> Iterator[Page]:
    """A UI whose API is down."""
    with running_ui(f"http://127.0.0.1:{free_port()}", tmp_path) as ui:
        yield opened(watched.page, ui.url)


def test_without_the_api_the_page_says_so_and_gives_the_message_back(lonely: Page) -> None:
    expect(lonely.locator("#strip")).to_contain_text("API not reachable, retrying")
    lonely.get_by_placeholder("Write a message").fill("hello")
    lonely.get_by_role("button", name="Send", exact=True).click()
    expect(lonely.locator("#transcript .note")).to_contain_text("is not reachable.")
    expect(lonely.get_by_placeholder("Write a message")).to_have_value("hello")
