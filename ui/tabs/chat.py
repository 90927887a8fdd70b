"""The chat tab: a streaming conversation whose answers can be rated, explained, re-rated and un-rated.

The browser keeps two ids, its conversation and a random name for its person; the words and ratings are the API's. So a
reload, or a restart of this process, shows the same conversation with the same thumbs.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from rlhf_core.records import REASONS, RatingValue
from ui.client import ApiClient, ApiError
from ui.conversation import Conversation, Turn, turns_of
from ui.replies import ChatEvent
from ui.text import CATEGORY_LABELS
from ui.transcript import loading_html, transcript_html

FRAME_SECONDS = 0.04
"""Deltas are drawn at most this often: a redraw per token would cost the browser more than the model."""
MAX_REASONS = 5
SCRIPT = (Path(__file__).parent.parent / "assets" / "transcript.js").read_text()
TAKE = "(text) => document.querySelector('#stop') ? [text, ''] : ['', text]"
"""Empty the box in the browser: an answer from here would come late, and wipe the next message being typed."""
Browser = dict[str, str]
"""What the browser stores: `user` and `conversation_id`."""
Drawn = tuple[Any, Any, Any, Any]
"""Updates of transcript, prompt, send button, stop button."""


def restore(client: ApiClient, conversation: Conversation, browser: Browser | None) -> tuple[str, Browser]:
    """On page load: take up the stored conversation with its ratings, or begin a new one."""
    with conversation.lock:
        if not conversation.ready:
            _take_up(client, conversation, browser or {})
    return transcript_html(conversation.shown), _kept(conversation.shown)


def _take_up(client: ApiClient, conversation: Conversation, kept: Browser) -> None:
    conversation.user = kept.get("user") or f"web-{uuid.uuid4().hex}"
    conversation.conversation_id = kept.get("conversation_id") or conversation.conversation_id
    try:
        if kept.get("conversation_id"):
            conversation.turns = turns_of(client.conversation(conversation.conversation_id))
    except ApiError as error:
        if error.status != 404:
            conversation.notice = f"Earlier messages could not be loaded. {error}"
            return
    conversation.ready, conversation.notice = True, ""


def start_over(conversation: Conversation) -> tuple[Conversation, str, Browser]:
    """A new, empty conversation. An answer that still streams is stopped, and stays with the old one."""
    conversation.stop = True
    fresh = conversation.successor = Conversation(user=conversation.user)
    fresh.ready = True
    return fresh, transcript_html(fresh), _kept(fresh)


def _kept(conversation: Conversation) -> Browser:
    return {"user": conversation.user, "conversation_id": conversation.conversation_id}


def send(client: ApiClient, conversation: Conversation, browser: Browser | None, prompt: str) -> Iterator[Drawn]:
    """Stream one answer into the transcript. An empty prompt changes nothing; one that comes while another answer
    streams is given back to the box."""
    prompt = prompt.strip()
    if not prompt:
        yield gr.skip(), gr.skip(), gr.skip(), gr.skip()
        return
    # A quick person sends before the page's load event has come, or after it failed.
    restore(client, conversation, browser)
    messages = conversation.messages(prompt)
    turn = conversation.begin(prompt)
    if turn is None:
        yield _drawn(conversation, give_back=prompt)
        return
    events = client.chat_stream(messages, conversation_id=conversation.conversation_id, user=conversation.user)
    try:
        yield _drawn(conversation)
        for _ in frames(_take(turn, events, conversation)):
            yield _drawn(conversation)
    except ApiError as error:
        turn.state = "failed"
        turn.say(str(error), error=True)
    finally:
        # Also when the browser went away: the server stops generating, and the session is not left streaming.
        turn.state = "stopped" if turn.state == "streaming" else turn.state
        events.close()
    yield _drawn(conversation, give_back=prompt if turn.state == "failed" and not turn.answer else None)


def _take(turn: Turn, events: Iterable[ChatEvent], conversation: Conversation) -> Iterator[None]:
    """Write the stream into the turn, event by event, until it ends or the stop button was pressed."""
    for event in events:
        turn.interaction_id, turn.policy_version = event.interaction_id, event.policy_version
        turn.answer += event.delta
        if event.finish is not None:
            turn.state = "cut" if event.finish == "length" else "done"
        if conversation.stop:
            return
        yield


def frames(steps: Iterable[None], seconds: float = FRAME_SECONDS) -> Iterator[None]:
    """At most one of `steps` per `seconds`; the caller draws once more when they are over."""
    last = -math.inf
    for step in steps:
        now = time.monotonic()
        if now - last >= seconds:
            last = now
            yield step


def _drawn(conversation: Conversation, give_back: str | None = None) -> Drawn:
    shown = conversation.shown
    busy = shown.streaming
    box = gr.skip() if give_back is None else gr.update(value=give_back)
    return transcript_html(shown), box, gr.update(visible=not busy), gr.update(visible=busy)


def stop(conversation: Conversation) -> None:
    conversation.stop = True


def suggest(event: gr.EventData) -> str:
    return str(event._data.get("text", ""))[:1000]


def act(client: ApiClient, conversation: Conversation, data: dict[str, Any]) -> str:
    """A click below an answer. `data` comes from the page: act, interaction_id, value, reasons, comment."""
    turn = conversation.turn(str(data.get("interaction_id", "")))
    if turn is None:
        return transcript_html(conversation.shown)
    with conversation.lock:
        try:
            _judge(client, turn, data)
        except ApiError as error:
            turn.say(f"Not saved. {error}", error=True)
    return transcript_html(conversation.shown)


def _judge(client: ApiClient, turn: Turn, data: dict[str, Any]) -> None:
    name, value = data.get("act"), data.get("value")
    if name == "rate" and value in ("up", "down") and turn.rating != value:
        rate(client, turn, value)
    elif name == "undo" or (name == "rate" and turn.rating is not None):
        withdraw(client, turn)
    elif name == "reasons" and turn.rating is not None:
        explain(client, turn, data.get("reasons") or [], str(data.get("comment", "")))
    elif name in ("explain", "report", "close"):
        turn.explaining, turn.reporting = name == "explain" and turn.rating is not None, name == "report"
        turn.draft = turn.reported, turn.report_note
    elif name == "send-report":
        report(client, turn, data.get("reasons") or [], str(data.get("comment", "")))
    elif name == "unreport" and turn.reported is not None:
        client.withdraw_report(turn.interaction_id)
        turn.report(None)
        turn.say("Report taken back.", on_rating=False)


def rate(client: ApiClient, turn: Turn, value: RatingValue) -> None:
    receipt = client.rate(turn.interaction_id, value)
    turn.judge(receipt.state)
    turn.say("Saved." if receipt.counted.training else "Saved; it counts, but does not train.")


def withdraw(client: ApiClient, turn: Turn) -> None:
    """Pressing a set thumb again, or Undo: no rating is left, which is not the same as a bad one."""
    client.withdraw(turn.interaction_id)
    turn.judge(None)
    turn.say("Rating withdrawn.")


def explain(client: ApiClient, turn: Turn, reasons: list[str], comment: str) -> None:
    if turn.rating is None:
        return
    known = tuple(key for key in reasons if key in REASONS)[:MAX_REASONS]
    comment = comment.strip()[:4000]
    receipt = client.rate(turn.interaction_id, turn.rating, known, comment)
    turn.judge(receipt.state, known, comment)
    turn.say("Saved with your reason." if known or comment else "Saved.")


def report(client: ApiClient, turn: Turn, chosen: list[str], note: str) -> None:
    category = next((key for key in CATEGORY_LABELS if key in chosen), None)
    note = note.strip()[:4000]
    # The panel is drawn again if this fails, and is to hold what was typed.
    turn.draft = category, note
    if category is None:
        turn.say("Not sent. Choose what is wrong with the answer first.", error=True)
        return
    client.report(turn.interaction_id, category, note)
    turn.report(category, note)
    turn.say("Reported to the moderators.", on_rating=False)


@dataclass(frozen=True)
class Composer:
    """The row under the transcript. `asked` is hidden: it holds the message that is being sent."""

    prompt: gr.Textbox
    asked: gr.Textbox
    sender: gr.Button
    stopper: gr.Button
    restart: gr.Button


def composer() -> Composer:
    with gr.Row(elem_id="composer"):
        prompt = gr.Textbox(
            placeholder="Write a message", show_label=False, label="Message", container=False, lines=1, max_lines=6,
            max_length=8000, scale=8, min_width=160, elem_id="prompt", autofocus=True,
        )  # fmt: skip
        sender = gr.Button("Send", variant="primary", scale=0, min_width=96, elem_id="send")
        stopper = gr.Button("Stop", variant="stop", scale=0, min_width=96, elem_id="stop", visible=False)
        restart = gr.Button("New conversation", scale=0, min_width=150, elem_id="new")
    return Composer(prompt, gr.Textbox(visible="hidden"), sender, stopper, restart)


def chat_tab(client: ApiClient, conversation: gr.State, browser: gr.BrowserState) -> gr.HTML:
    """Lay the tab out and connect it; returns the transcript, which the app fills on load."""
    transcript = gr.HTML(loading_html(), elem_id="transcript", js_on_load=SCRIPT, apply_default_css=False)
    row = composer()

    def on_act(held: Conversation, event: gr.EventData) -> str:
        return act(client, held, event._data)

    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    # `multiple`, because by default the page drops an event while the one before it is pending; no limit, because by
    # default one rater would wait for another.
    judging: dict[str, Any] = {"trigger_mode": "multiple", "concurrency_limit": None, "queue": False}
    asking, told = partial(send, client), [conversation, browser, row.asked]
    drawn = [transcript, row.prompt, row.sender, row.stopper]
    taken = gr.on([row.prompt.submit, row.sender.click], None, row.prompt, [row.prompt, row.asked], js=TAKE, **quiet)
    taken.then(asking, told, drawn, trigger_mode="multiple", **quiet)
    transcript.suggest(suggest, None, row.asked, queue=False, **quiet).then(asking, told, drawn, **quiet)
    transcript.act(on_act, conversation, transcript, **judging, **quiet)
    row.stopper.click(stop, conversation, None, queue=False, **quiet)
    row.restart.click(start_over, conversation, [conversation, transcript, browser], queue=False, **quiet)
    return transcript
