"""Values as a person reads them. Whatever returns HTML says so in its name, and has escaped every value it was given.

The transcript, the strip and the tables are `gr.HTML`, which renders what it gets: this module and the functions that
build on it are where text of people and models becomes safe.
"""

from __future__ import annotations

import datetime
import re
from html import escape
from typing import Any

from markdown_it import MarkdownIt

from rlhf_core.records import REASONS_DOWN, REASONS_UP, RatingValue, ReportCategory

SAFE_LINK = re.compile(r"^(https?://|mailto:)", re.IGNORECASE)
MAX_CHIPS = 8
REASON_LABELS = {
    "inaccurate": "Inaccurate",
    "unhelpful": "Not helpful",
    "ignored_instructions": "Ignored what I asked",
    "harmful": "Harmful",
    "biased": "Biased",
    "refused_wrongly": "Refused wrongly",
    "too_long": "Too long",
    "too_short": "Too short",
    "tone": "Wrong tone",
    "accurate": "Accurate",
    "helpful": "Helpful",
    "clear": "Clear",
    "followed_instructions": "Did what I asked",
    "right_tone": "Right tone",
    "creative": "Creative",
    "other": "Other",
}
CATEGORY_LABELS: dict[ReportCategory, str] = {
    "toxic": "Insulting or hateful",
    "bias": "Biased",
    "privacy": "Private data",
    "illegal": "Illegal",
    "self_harm": "Self-harm",
    "other": "Something else",
}
SHOWN_DOWN = tuple(key for key in REASONS_DOWN if key not in ("biased", "refused_wrongly"))
"""Eight chips are read, ten are skipped; the other two keys stay open to API clients."""


def reason_choices(value: RatingValue) -> tuple[tuple[str, str], ...]:
    """(key, label) of each chip offered with a thumb, at most MAX_CHIPS."""
    keys = SHOWN_DOWN if value == "down" else REASONS_UP
    return tuple((key, REASON_LABELS[key]) for key in keys[:MAX_CHIPS])


def _markdown() -> MarkdownIt:
    # No raw HTML; no images, because loading one would tell a stranger's server that the answer was read.
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable("table").disable("image")
    parser.validateLink = lambda url: SAFE_LINK.match(url) is not None  # type: ignore[method-assign]
    parser.add_render_rule("link_open", _link_open)
    return parser


def _link_open(renderer: Any, tokens: Any, index: int, options: Any, env: Any) -> str:
    tokens[index].attrSet("rel", "noopener noreferrer nofollow")
    tokens[index].attrSet("target", "_blank")
    rendered: str = renderer.renderToken(tokens, index, options, env)
    return rendered


def markdown_html(text: str) -> str:
    """A model's Markdown as HTML: raw HTML shown as text, links to http, https and mailto only, no images."""
    rendered: str = _markdown().render(text)
    return rendered


def time_html(at: float) -> str:
    """A moment. The text is this process's clock; the page's script rewrites it for the reader's time zone."""
    moment = datetime.datetime.fromtimestamp(at).astimezone()
    return f'<time datetime="{moment.isoformat(timespec="seconds")}">{moment:%H:%M}</time>'


def date_html(at: float) -> str:
    moment = datetime.datetime.fromtimestamp(at).astimezone()
    stamp = moment.isoformat(timespec="seconds")
    return f'<time datetime="{stamp}" data-day>{moment:%d %b %H:%M}</time>'


def percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.0f} %"


def number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def duration(seconds: float | None) -> str:
    """`41 s`, `3 min 20 s`, `2 h 5 min`."""
    if seconds is None:
        return "–"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def meter_html(fraction: float, label: str) -> str:
    """A thin bar. `label` is what a screen reader says."""
    width = 100 * min(1.0, max(0.0, fraction))
    return (
        f'<span class="meter" role="progressbar" aria-label="{escape(label)}" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{width:.0f}"><span style="width:{width:.1f}%"></span></span>'
    )
