"""Rows of data files, in the forms that people already have: JSONL and Parquet, read one at a time, each checked.

- `messages`: a demonstration; optional `review` (`approved`, `rejected`, `pending`). `prompt, completion` is one too.
- `prompt, chosen, rejected`: a preference pair; without `prompt`, chosen and rejected are whole conversations.
- `prompt, completion, label`: a thumb; with `reasons` instead of `label`, what a report or a review says of the answer.
- `prompt` alone: something to answer.

A prompt is a string (one user message) or a list of messages; an answer is a string or one assistant message in a
list. All may carry `rater`, `created_at`, `reasons`; pairs also `side`, `tie`, `margin`. Columns that none of this
names pass unread. Knows no tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import REASONS, REMARKS, Message, Side
from rlhf_core.runs.data_files import BadRowError, read_contents
from rlhf_core.runs.tally import Place, Tally

FORMS = "messages; prompt, chosen, rejected; prompt, completion, label"


class _Common(msgspec.Struct, frozen=True, kw_only=True):
    place: Place
    content: dict[str, Any]
    """The row as it was read."""
    rater: str = "anonymous"
    created_at: float = 0.0
    reasons: tuple[str, ...] = ()


class DemonstrationRow(_Common, frozen=True, kw_only=True):
    """A conversation whose assistant turns are to be imitated."""

    messages: tuple[Message, ...]
    approved: bool | None = None
    """None: it comes from no review."""


class PairRow(_Common, frozen=True, kw_only=True):
    """Two answers to one prompt; of a tie, `chosen` and `rejected` are merely the first and the second."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    side: Side | None = None
    """Where the chosen answer was shown."""
    tie: bool = False
    margin: float = 0.0


class RatingRow(_Common, frozen=True, kw_only=True):
    """One answer with a thumb; `up` is None where there is none, only an answer, and perhaps reasons."""

    prompt: tuple[Message, ...]
    completion: str
    up: bool | None

    @property
    def is_remark(self) -> bool:
        """Whether it is a report or a review: reasons, and no thumb."""
        return self.up is None and bool(self.reasons)


class PromptRow(_Common, frozen=True, kw_only=True):
    prompt: tuple[Message, ...]


Row = DemonstrationRow | PairRow | RatingRow | PromptRow


def read_rows(paths: Sequence[Path], tally: Tally) -> Iterator[Row]:
    """The rows of all files, in order. A bad one is refused or skipped as `tally` says.

    Raises InvalidRequestError for a file that is missing, empty or neither JSONL nor Parquet.
    """
    for path in paths:
        before = tally.rows
        for place, content in read_contents(path):
            tally.rows += 1
            if isinstance(content, BadRowError):
                tally.refuse(place, str(content))
                continue
            try:
                row = parse_row(content, place)
            except BadRowError as error:
                tally.refuse(place, str(error))
                continue
            yield row
        if tally.rows == before:
            raise InvalidRequestError(f"{path} holds no rows", param="data")


def parse_row(content: object, place: Place) -> Row:
    """One decoded row as its form says. A null column counts as absent."""
    if not isinstance(content, dict):
        raise BadRowError(f"it is {_kind(content)}, not an object")
    columns = {name: value for name, value in content.items() if value is not None}
    common = {"place": place, "content": content, **_common(columns)}
    has = columns.keys()
    if "chosen" in has or "rejected" in has:
        return _pair(columns, common)
    if "completion" in has:
        return _rating(columns, common)
    if "messages" in has:
        return _demonstration(columns, common)
    if "label" in has:
        _bad("it has a label and no completion")
    if "prompt" in has:
        return PromptRow(prompt=_prompt(columns["prompt"]), **common)
    return _bad(f"its columns are {', '.join(map(str, has)) or 'none'}; the known forms are {FORMS}")


def _demonstration(columns: Mapping[str, Any], common: Mapping[str, Any]) -> DemonstrationRow:
    messages = _messages(columns["messages"], "messages")
    review = columns.get("review")
    if review not in (None, "approved", "rejected", "pending"):
        _bad(f"review is {review!r}; it is approved, rejected or pending")
    return DemonstrationRow(messages=messages, approved=None if review is None else review == "approved", **common)


def _rating(columns: Mapping[str, Any], common: Mapping[str, Any]) -> RatingRow:
    if "prompt" not in columns:
        _bad("it has a completion and no prompt")
    up = _label(columns["label"]) if "label" in columns else None
    prompt, completion = _prompt(columns["prompt"]), _answer(columns["completion"], "completion")
    return RatingRow(prompt=prompt, completion=completion, up=up, **common)


def _pair(columns: Mapping[str, Any], common: Mapping[str, Any]) -> PairRow:
    for name, other in (("chosen", "rejected"), ("rejected", "chosen")):
        if name not in columns:
            _bad(f"it has {other} and no {name}")
    if "prompt" in columns:
        prompt = _prompt(columns["prompt"])
        chosen, rejected = (_answer(columns[name], name) for name in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = _implicit_prompt(columns["chosen"], columns["rejected"])
    tie = _typed(columns.get("tie", False), bool, "tie")
    margin = _number(columns.get("margin", 0.0), "margin")
    side = columns.get("side")
    if side not in (None, "left", "right"):
        _bad(f"side is {side!r}; it is left or right: where the chosen answer was shown")
    if not 0.0 <= margin < float("inf"):
        _bad(f"margin is {margin}; it is a number from 0 up")
    if tie and margin:
        _bad(f"it is a tie with a margin of {margin}")
    if chosen == rejected:
        _bad("chosen and rejected are the same")
    return PairRow(prompt=prompt, chosen=chosen, rejected=rejected, side=side, tie=bool(tie), margin=margin, **common)


def _implicit_prompt(chosen: object, rejected: object) -> tuple[tuple[Message, ...], str, str]:
    """The turns that two conversations share, and the one answer in which each of them ends."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        _bad("it has no prompt, so chosen and rejected must be whole conversations (lists of messages)")
    first, second = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if first[:-1] != second[:-1] or not first[:-1]:
        _bad("without a prompt, chosen and rejected must be alike up to their last message")
    if {first[-1].role, second[-1].role} != {"assistant"}:
        _bad("chosen and rejected must end in an assistant message")
    return _checked_prompt(first[:-1]), _said(first[-1].content, "chosen"), _said(second[-1].content, "rejected")


def _common(columns: Mapping[str, Any]) -> dict[str, Any]:
    rater = columns.get("rater", "anonymous")
    if isinstance(rater, int) and not isinstance(rater, bool):
        rater = str(rater)
    reasons = _typed(columns.get("reasons", []), list, "reasons")
    remarked = "completion" in columns and "label" not in columns
    known = REASONS | REMARKS if remarked else REASONS
    for reason in reasons:
        if not isinstance(reason, str) or reason not in known:
            _bad(f"reason {reason!r} is not one of {', '.join(sorted(known))}")
    return {
        "rater": _typed(rater, str, "rater") or "anonymous",
        "created_at": _time(columns.get("created_at", 0.0)),
        "reasons": tuple(reasons),
    }


def _time(value: Any) -> float:
    """Unix seconds; also a date as Parquet gives it, or as ISO 8601 writes it."""
    if hasattr(value, "timestamp"):
        try:
            return float(value.timestamp())
        except (ValueError, OverflowError, OSError):
            _bad(f"created_at is {value}, which is no time that a clock has shown")
    if isinstance(value, str):
        from datetime import datetime

        try:
            return datetime.fromisoformat(value).timestamp()
        except ValueError:
            _bad(f"created_at is {value!r}: neither Unix seconds nor an ISO 8601 time")
    return _number(value, "created_at")


def _label(value: object) -> bool:
    words = {True: True, False: False, "up": True, "down": False}
    if isinstance(value, bool | int | str) and value in words:
        return words[value]
    return _bad(f"label is {value!r}; it is true or false")


def _prompt(value: object) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", _said(value, "prompt")),)
    return _checked_prompt(_messages(value, "prompt"))


def _checked_prompt(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if messages[-1].role == "assistant":
        _bad("its prompt ends in an assistant message, so there is nothing to answer")
    return messages


def _answer(value: object, name: str) -> str:
    if isinstance(value, str):
        return _said(value, name)
    messages = _messages(value, name)
    if len(messages) != 1 or messages[0].role != "assistant":
        _bad(f"{name} must be a string or a list of one assistant message")
    return _said(messages[0].content, name)


def _said(text: str, name: str) -> str:
    if not text.strip():
        _bad(f"its {name} is empty")
    return text


def _messages(value: object, name: str) -> tuple[Message, ...]:
    if value == []:
        _bad(f"{name} is an empty list")
    if not isinstance(value, list):
        _bad(f"{name} is {_kind(value)}, not a list of messages")
    return tuple(_message(each, name, at) for at, each in enumerate(value))


def _message(value: object, name: str, at: int) -> Message:
    if not isinstance(value, dict):
        _bad(f"{name}[{at}] is {_kind(value)}, not a message with role and content")
    role, content = value.get("role"), value.get("content")
    if role not in ("system", "user", "assistant"):
        _bad(f"{name}[{at}] has the role {role!r}; roles are system, user and assistant")
    if not isinstance(content, str):
        _bad(f"{name}[{at}] has content that is {_kind(content)}, not text")
    return Message(role, content)


def _typed(value: Any, kind: Any, name: str) -> Any:
    fits = isinstance(value, kind) or (kind is float and isinstance(value, int) and not isinstance(value, bool))
    return value if fits else _bad(f"{name} is {value!r}, not {_KINDS[kind]}")


def _number(value: Any, name: str) -> float:
    try:
        return float(_typed(value, float, name))
    except OverflowError:
        _bad(f"{name} is an integer of {len(str(value))} digits")


def _kind(value: object) -> str:
    return "missing" if value is None else _KINDS.get(type(value), type(value).__name__)


_KINDS: dict[type, str] = {
    str: "a string",
    list: "a list",
    dict: "an object",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def _bad(reason: str) -> NoReturn:
    raise BadRowError(reason)
