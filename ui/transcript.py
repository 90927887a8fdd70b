"""A conversation as HTML: messages, thumbs, and the optional panel with reasons. Pure; every value is escaped here.

Our own buttons instead of the ones of `gr.Chatbot`: a thumb must always be visible, reachable by keyboard and say with
`aria-pressed` whether it is set, and un-rating must not look like a dislike. `assets/transcript.js` turns a click on a
`data-act` button into an event; it holds no state.
"""

from __future__ import annotations

from html import escape

from rlhf_core.records import RatingValue
from ui.conversation import Conversation, Turn
from ui.text import CATEGORY_LABELS, markdown_html, reason_choices

EXAMPLES = (
    "My internet is so slow today.",
    "How do I reset my router?",
    "Why is my bill so high this month?",
    "Can you send a technician?",
)
THUMB = (
    '<svg viewBox="0 0 24 24" width="18" height="18" aria-hidden="true"><path d="M7 10v10H4a1 1 0 0 1-1-1v-8a1 1 0 0 1 '
    '1-1h3zm2 0 4-7c1.4 0 2.5 1.1 2.5 2.5V9H20a2 2 0 0 1 2 2.3l-1.2 7A2 2 0 0 1 18.8 20H9z"/></svg>'
)
TYPING = '<span class="typing" aria-label="Answering"><i></i><i></i><i></i></span>'
STATE_MARKS = {"cut": "cut at the length limit", "stopped": "stopped"}


def transcript_html(conversation: Conversation) -> str:
    turns = "".join(turn_html(turn, index) for index, turn in enumerate(conversation.turns))
    notice = f'<p class="notice">{escape(conversation.notice)}</p>' if conversation.notice else ""
    body = turns or ("" if notice else welcome_html())
    return _log_html(notice + body)


def loading_html() -> str:
    """Until the page knows which conversation it shows."""
    return _log_html(TYPING)


def _log_html(body: str) -> str:
    return f'<div class="log" role="log" aria-label="Conversation" tabindex="0">{body}</div>'


def welcome_html() -> str:
    chips = "".join(
        f'<button type="button" data-act="suggest" data-value="{escape(text)}">{escape(text)}</button>'
        for text in EXAMPLES
    )
    return (
        '<div class="welcome"><h2>What can the desk do for you?</h2>'
        "<p>Ask about your connection, your bill, your order or your account, then rate the answer. "
        f'Ratings train the next policy.</p><div class="chips">{chips}</div></div>'
    )


def turn_html(turn: Turn, index: int) -> str:
    """One turn. The blocks below the answer are always there, if empty, so that an update never moves the others."""
    return (
        f'<article class="turn" data-interaction="{escape(turn.interaction_id)}" data-turn="{index}">'
        f'<div class="said" aria-label="You">{escape(turn.prompt)}</div>'
        f'<div class="answer {turn.state}" aria-label="Answer">{_answer_html(turn)}</div>'
        f'<div class="foot">{_foot_html(turn)}</div>'
        f'<div class="note" role="status">{_note_html(turn)}</div>'
        f'<div class="why">{_panel_html(turn, index)}</div></article>'
    )


def _answer_html(turn: Turn) -> str:
    if turn.answer:
        return markdown_html(turn.answer)
    if turn.state == "streaming":
        return TYPING
    return '<span class="none">No answer</span>'


def _foot_html(turn: Turn) -> str:
    if turn.state == "streaming" or not turn.interaction_id:
        return _mark_html(turn)
    thumbs = _thumb_html(turn, "up", "Good response") + _thumb_html(turn, "down", "Bad response")
    return thumbs + _mark_html(turn) + _link_html("report", "Reported" if turn.reported else "Report")


def _thumb_html(turn: Turn, value: RatingValue, label: str) -> str:
    pressed = "true" if turn.rating == value else "false"
    return (
        f'<button type="button" class="thumb {value}" data-act="rate" data-value="{value}" aria-pressed="{pressed}" '
        f'aria-label="{label}" title="{label}">{THUMB}</button>'
    )


def _mark_html(turn: Turn) -> str:
    marks = [f"policy {turn.policy_version}"] if turn.policy_version else []
    if turn.state in STATE_MARKS:
        marks.append(STATE_MARKS[turn.state])
    return f'<span class="mark">{escape(" · ".join(marks))}</span>'


def _note_html(turn: Turn) -> str:
    if turn.note_is_error:
        return f'<span class="error">{escape(turn.note)}</span>'
    if turn.rating is None:
        return f"<span>{escape(turn.note)}</span>"
    saved = turn.note or "Saved."
    undo = "Undo" if turn.note_on_rating else "Undo your rating"
    explain = "Edit your reason" if turn.reasons or turn.comment else "Add a reason"
    return f"<span>{escape(saved)}</span>{_link_html('undo', undo)}{_link_html('explain', explain)}"


def _link_html(act: str, label: str) -> str:
    return f'<button type="button" class="link" data-act="{act}">{escape(label)}</button>'


def _panel_html(turn: Turn, index: int) -> str:
    if turn.reporting:
        return _report_html(turn, index)
    return _why_html(turn) if turn.explaining else ""


def _report_html(turn: Turn, index: int) -> str:
    chosen, note = turn.draft
    chips = "".join(
        _chip_html(key, label, key == chosen, group=f"report-{index}") for key, label in CATEGORY_LABELS.items()
    )
    take_back = _link_html("unreport", "Take the report back") if turn.reported else ""
    return (
        '<fieldset><legend>What is wrong with this answer? <span class="hint">goes to the moderators</span></legend>'
        f'<div class="chips">{chips}</div><textarea rows="2" maxlength="4000" aria-label="Note" '
        f'placeholder="What should they know?">{escape(note)}</textarea><div class="acts">'
        f'<button type="button" class="solid" data-act="send-report">Send report</button>{take_back}'
        f"{_link_html('close', 'Close')}</div></fieldset>"
    )


def _why_html(turn: Turn) -> str:
    if turn.rating is None:
        return ""
    chips = "".join(_chip_html(key, label, key in turn.reasons) for key, label in reason_choices(turn.rating))
    question = "What was good about it?" if turn.rating == "up" else "What was wrong with it?"
    return (
        f'<fieldset><legend>{question} <span class="hint">optional, up to 5</span></legend><div class="chips">{chips}'
        '</div><textarea rows="2" maxlength="4000" aria-label="Comment" '
        f'placeholder="Anything to add?">{escape(turn.comment)}</textarea><div class="acts">'
        '<button type="button" class="solid" data-act="reasons">Save reason</button>'
        f"{_link_html('close', 'Close')}</div></fieldset>"
    )


def _chip_html(key: str, label: str, chosen: bool, group: str = "") -> str:
    """One of several that may be chosen together or, in a group, of which one is."""
    kind = f'radio" name="{escape(group)}' if group else "checkbox"
    box = f'<input type="{kind}" value="{escape(key)}"{" checked" if chosen else ""}>'
    return f'<label class="chip">{box}<span>{escape(label)}</span></label>'
