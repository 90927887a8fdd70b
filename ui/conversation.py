"""A conversation as one browser session holds it: turns, their ratings, and what is open on the screen.

One `Conversation` lives in Gradio's session state and is changed in place, because a rating may be saved while the next
answer is still streaming: each event draws the whole transcript from the same object, so none overwrites the other.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rlhf_core.records import Message, RatingValue, ReportCategory
from ui.replies import StoredConversation, StoredTurn

TurnState = Literal["streaming", "done", "cut", "stopped", "failed"]


@dataclass
class Turn:
    """One prompt and its answer."""

    prompt: str
    answer: str = ""
    interaction_id: str = ""
    policy_version: int = 0
    state: TurnState = "streaming"
    """`cut`: ended at the length limit; `stopped`: by the person; `failed`: by an error, told in `note`."""
    rating: RatingValue | None = None
    reasons: tuple[str, ...] = ()
    comment: str = ""
    explaining: bool = False
    """Whether the panel with reasons is open."""
    reported: ReportCategory | None = None
    report_note: str = ""
    reporting: bool = False
    """Whether the panel of the report is open, in the place of the other."""
    draft: tuple[ReportCategory | None, str] = (None, "")
    """What stands in that panel: category and note."""
    note: str = ""
    """One sentence under the answer."""
    note_is_error: bool = False
    note_on_rating: bool = True
    """Whether it speaks of the rating, as what can be done beside it does."""

    def say(self, note: str, *, error: bool = False, on_rating: bool = True) -> None:
        self.note, self.note_is_error, self.note_on_rating = note, error, on_rating

    def judge(self, value: RatingValue | None, reasons: tuple[str, ...] = (), comment: str = "") -> None:
        """Take over what the API has stored. A new thumb starts without the reasons of the old one."""
        self.rating, self.reasons, self.comment, self.explaining = value, reasons, comment, False

    def report(self, category: ReportCategory | None, note: str = "") -> None:
        """Take over what the API has stored of my report."""
        self.reported, self.report_note, self.reporting = category, note, False
        self.draft = category, note


class Conversation:
    """Not a dataclass: Gradio serialises those field by field when it starts."""

    def __init__(self, conversation_id: str = "", user: str = "", turns: Sequence[Turn] = (), notice: str = "") -> None:
        self.conversation_id = conversation_id or uuid.uuid4().hex
        self.user = user
        self.turns = list(turns)
        self.notice = notice
        """One sentence above the first turn."""
        self.ready = False
        """Whether it is known what the API has stored of it."""
        self.stop = False
        """Set by the stop button, read by the stream between two events."""
        self.successor: Conversation | None = None
        """The conversation that replaced it on the screen while an answer was still streaming."""
        self.lock = threading.Lock()
        """Held while a turn begins or a rating is saved: two quick clicks are served one after the other."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Conversation:
        # Gradio copies a state's first value for each session; a lock cannot be copied, and a session starts empty.
        return Conversation()

    @property
    def streaming(self) -> bool:
        return bool(self.turns) and self.turns[-1].state == "streaming"

    @property
    def shown(self) -> Conversation:
        """What the screen shows now: a late event of a left conversation must not bring it back."""
        return self.successor.shown if self.successor else self

    def begin(self, prompt: str) -> Turn | None:
        """A new turn at the end; None while another one streams."""
        with self.lock:
            if self.streaming:
                return None
            self.turns.append(Turn(prompt))
            self.stop = False
            return self.turns[-1]

    def turn(self, interaction_id: str) -> Turn | None:
        return next((turn for turn in self.turns if interaction_id and turn.interaction_id == interaction_id), None)

    def messages(self, prompt: str) -> list[Message]:
        """What the policy sees: every answered turn, then `prompt`."""
        told: list[Message] = []
        for turn in self.turns:
            if turn.answer and turn.state != "failed":
                told += [Message("user", turn.prompt), Message("assistant", turn.answer)]
        return [*told, Message("user", prompt)]


def turns_of(stored: StoredConversation) -> list[Turn]:
    return [_turn(item) for item in stored.interactions]


def _turn(item: StoredTurn) -> Turn:
    prompt = next((message.content for message in reversed(item.messages) if message.role == "user"), "")
    turn = Turn(prompt, item.response, item.interaction_id, item.policy_version, state=_state(item))
    if item.rating is not None and item.rating.state is not None:
        turn.judge(item.rating.state, item.rating.reasons, item.rating.comment)
    if item.report is not None:
        turn.report(item.report.category, item.report.note)
    return turn


def _state(item: StoredTurn) -> TurnState:
    return "done" if item.status == "done" else "failed" if item.status == "error" else "stopped"
