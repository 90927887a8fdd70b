"""What people and models write is shown as they wrote it, and never runs."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from rlhf_core.records import REASONS, REASONS_DOWN, REASONS_UP
from ui.conversation import Conversation, Turn
from ui.replies import Live, Status, Training
from ui.strip import strip_html
from ui.text import MAX_CHIPS, REASON_LABELS, duration, markdown_html, percent, reason_choices
from ui.transcript import transcript_html

ATTACKS = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt&#58;alert(1))",
    "![beacon](http://example.org/pixel.png)",
    "[a](data:text/html;base64,PHNjcmlwdD4=)",
    '<a href="javascript:alert(1)">x</a>',
    "`</code><script>alert(1)</script>`",
    "```html\n</code></pre><script>alert(1)</script>\n```",
    "${alert(1)} {{constructor.constructor('alert(1)')()}}",
    "</textarea><script>alert(1)</script>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<style>body{display:none}</style>",
)
FORBIDDEN_TAGS = {"script", "img", "iframe", "style", "object", "embed", "link", "meta", "base", "form"}


class Audit(HTMLParser):
    """Collects what a browser would act on."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.faults: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in FORBIDDEN_TAGS:
            self.faults.append(tag)
        for name, value in attrs:
            if name.startswith("on") or (name in ("href", "src") and not (value or "").startswith("http")):
                self.faults.append(f"{name}={value}")

    def handle_data(self, data: str) -> None:
        self.text += data


def hostile_conversation(text: str) -> Conversation:
    turn = Turn(text, text, interaction_id=text, policy_version=1, state="done", comment=text)
    turn.rating, turn.explaining, turn.note = "down", True, text
    return Conversation("c", "u", [turn], notice=text)


@pytest.mark.parametrize("text", ATTACKS)
def test_nothing_that_people_or_models_write_becomes_markup_that_acts(text: str) -> None:
    assert Audit(transcript_html(hostile_conversation(text))).faults == []


@pytest.mark.parametrize("text", ATTACKS)
def test_what_the_api_reports_is_escaped_in_the_strip(text: str) -> None:
    training = Training(kind=text, state="running", stage=text, progress=0.5)
    status = Status(live=Live(policy_version=1), training=training)
    audit = Audit(strip_html(status))
    assert audit.faults == []
    assert text in audit.text


def test_a_prompt_with_markup_reads_as_it_was_typed() -> None:
    html = transcript_html(Conversation("c", "u", [Turn("<b>hi</b> & bye")]))
    assert "<b>hi</b> & bye" in Audit(html).text


def test_markdown_of_an_answer_is_rendered() -> None:
    html = markdown_html("**bold**\n\n- one\n- two\n\n[site](https://example.org)")
    assert "<strong>bold</strong>" in html
    assert html.count("<li>") == 2
    assert 'href="https://example.org" rel="noopener noreferrer nofollow" target="_blank"' in html


def test_every_reason_has_a_label_and_at_most_eight_are_offered() -> None:
    assert REASON_LABELS.keys() == REASONS
    assert len(reason_choices("down")) == MAX_CHIPS
    assert {key for key, _ in reason_choices("up")} == set(REASONS_UP)
    assert {key for key, _ in reason_choices("down")} < set(REASONS_DOWN)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(None, "–"), (0.4, "0 s"), (41.4, "41 s"), (59.6, "1 min 0 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")],
)
def test_a_duration_is_said_in_two_units_at_most(seconds: float | None, said: str) -> None:
    assert duration(seconds) == said


def test_a_share_is_said_in_whole_percent() -> None:
    assert (percent(0.666), percent(None)) == ("67 %", "–")
