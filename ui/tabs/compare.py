"""The compare tab: two answers to one prompt, judged blind. Names and versions are shown only after the choice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from html import escape
from typing import Any, Literal

import gradio as gr

from rlhf_core.records import ChoiceValue, Message, Side
from ui.client import ApiClient, ApiError
from ui.conversation import Conversation
from ui.replies import ChoiceReceipt, ComparisonEvent, Revealed
from ui.tabs.chat import frames
from ui.text import markdown_html

Stage = Literal["empty", "streaming", "open", "chosen", "failed"]
CHOICES: tuple[tuple[ChoiceValue, str], ...] = (
    ("left", "A better"),
    ("tie", "Tie"),
    ("both_bad", "Both bad"),
    ("right", "B better"),
    ("skip", "Skip"),
)
START = "Write a prompt: two answers appear side by side, and you say which is better."
TOLD: dict[ChoiceValue, str] = {
    "left": "You preferred A.",
    "right": "You preferred B.",
    "tie": "You called it a tie.",
    "both_bad": "You found both bad.",
    "skip": "Skipped.",
}
NAMES: dict[Side, str] = {"left": "A", "right": "B"}


class Round:
    """One comparison on the screen; changed in place, like a Conversation, and for the same reason not a dataclass."""

    def __init__(self) -> None:
        self.reset("empty", START)

    def reset(self, stage: Stage, verdict: str) -> None:
        self.stage = stage
        self.verdict = verdict
        self.comparison_id = ""
        self.texts: dict[Side, str] = {"left": "", "right": ""}
        self.revealed: Revealed | None = None


def ask(client: ApiClient, shown: Round, conversation: Conversation, prompt: str) -> Iterator[tuple[Any, ...]]:
    """Stream both answers. Nothing happens for an empty prompt, or while a round is running."""
    prompt = prompt.strip()
    if not prompt or shown.stage == "streaming":
        yield (gr.skip(),) * 10
        return
    shown.reset("streaming", "Both answers are being written.")
    yield drawn(shown)
    stage: Stage = "failed"
    try:
        shown.comparison_id = client.compare([Message("user", prompt)], user=conversation.user)
        for _ in frames(_take(shown, client.comparison_events(shown.comparison_id))):
            yield drawn(shown)
        stage, shown.verdict = "open", "Which answer is better?"
    except ApiError as error:
        shown.verdict = f"This round cannot be judged. {error}"
    finally:
        # Also when the browser went away: the round must not stay locked.
        shown.stage = stage
    yield drawn(shown)


def _take(shown: Round, events: Iterable[ComparisonEvent]) -> Iterator[None]:
    for event in events:
        if event.slot is not None:
            shown.texts[event.slot] += event.delta
        yield


def choose(client: ApiClient, shown: Round, choice: ChoiceValue) -> tuple[Any, ...]:
    if shown.stage != "open":
        return drawn(shown)
    try:
        receipt = client.choose(shown.comparison_id, choice)
        shown.stage, shown.revealed, shown.verdict = "chosen", receipt.revealed, verdict(receipt)
    except ApiError as error:
        shown.verdict = f"Not saved. {error}"
    return drawn(shown)


def verdict(receipt: ChoiceReceipt) -> str:
    """The reveal: what was chosen, and which policy was where."""
    left, right = receipt.revealed.left.policy_version, receipt.revealed.right.policy_version
    if left != right and receipt.choice == "left":
        return f"You preferred A: policy {left} over policy {right}."
    if left != right and receipt.choice == "right":
        return f"You preferred B: policy {right} over policy {left}."
    where = f"Both came from policy {left}." if left == right else f"A was policy {left}, B was policy {right}."
    return f"{TOLD[receipt.choice]} {where}"


def next_round(shown: Round) -> tuple[Any, ...]:
    if shown.stage != "streaming":
        shown.reset("empty", START)
    return drawn(shown, prompt="")


def drawn(shown: Round, prompt: str | None = None) -> tuple[Any, ...]:
    """Updates of both panes, the verdict, the five choices, the next button and the prompt."""
    buttons = [gr.update(interactive=shown.stage == "open") for _ in CHOICES]
    after = gr.update(visible=shown.stage in ("chosen", "failed"))
    box = gr.skip() if prompt is None else gr.update(value=prompt)
    said = f'<p class="verdict {shown.stage}" role="status">{escape(shown.verdict)}</p>'
    return (pane_html(shown, "left"), pane_html(shown, "right"), said, *buttons, after, box)


def pane_html(shown: Round, side: Side) -> str:
    text = shown.texts[side]
    reveal = ""
    if shown.revealed is not None:
        version = getattr(shown.revealed, side).policy_version
        reveal = f'<span class="mark">policy {version}</span>'
    typing = '<span class="typing"><i></i><i></i><i></i></span>' if shown.stage == "streaming" else ""
    body = markdown_html(text) if text else typing
    return (
        f'<section class="pane" aria-label="Answer {NAMES[side]}"><header><b>{NAMES[side]}</b>{reveal}</header>'
        f'<div class="answer">{body}</div></section>'
    )


def compare_tab(client: ApiClient, conversation: gr.State) -> None:
    shown = gr.State(Round())
    with gr.Row(elem_id="asking"):
        prompt = gr.Textbox(
            placeholder="A prompt for both", show_label=False, label="Prompt", container=False, lines=1, max_lines=6,
            max_length=8000, scale=8, min_width=160, elem_id="compare-prompt",
        )  # fmt: skip
        asker = gr.Button("Ask both", variant="primary", scale=0, min_width=120, elem_id="compare-ask")
    with gr.Row(elem_id="panes", equal_height=True):
        left = gr.HTML(pane_html(Round(), "left"), elem_id="pane-left", apply_default_css=False, min_width=150)
        right = gr.HTML(pane_html(Round(), "right"), elem_id="pane-right", apply_default_css=False, min_width=150)
    said = gr.HTML(f'<p class="verdict">{escape(Round().verdict)}</p>', elem_id="verdict", apply_default_css=False)
    with gr.Row(elem_id="choices"):
        buttons = [
            gr.Button(label, interactive=False, min_width=90, elem_id=f"choose-{choice.replace('_', '-')}")
            for choice, label in CHOICES
        ]
    after = gr.Button("Next round", variant="primary", visible=False, elem_id="compare-next")
    quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
    outputs = [left, right, said, *buttons, after, prompt]
    gr.on([prompt.submit, asker.click], partial(ask, client), [shown, conversation, prompt], outputs, **quiet)
    for (choice, _), button in zip(CHOICES, buttons, strict=True):
        button.click(partial(_chosen, client, choice), shown, outputs, queue=False, **quiet)
    after.click(next_round, shown, outputs, queue=False, **quiet)


def _chosen(client: ApiClient, choice: ChoiceValue, shown: Round) -> tuple[Any, ...]:
    return choose(client, shown, choice)
