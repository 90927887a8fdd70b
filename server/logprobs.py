"""Logprobs in the two shapes that OpenAI's clients read. One writer serves one answer, token by token in order.

A logprob is that of the drawn token at the request's temperature, end token included.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any, Protocol

from rlhf_core.engine.sequence import StepOutput
from server.tokens import Speller, Spelling

LEAST = -9999.0
"""Stands for minus infinity, which JSON cannot say."""


class LogprobWriter(Protocol):
    def write(self, outputs: Sequence[StepOutput]) -> dict[str, Any]:
        """The entry for the next tokens of the answer."""


class ChatLogprobs:
    """`choices[].logprobs` of a chat completion."""

    def __init__(self, speller: Speller) -> None:
        self._speller = speller
        self._first = True

    def write(self, outputs: Sequence[StepOutput]) -> dict[str, Any]:
        return {"content": [self._entry(output) for output in outputs], "refusal": None}

    def _entry(self, output: StepOutput) -> dict[str, Any]:
        top = [self._token(token_id, logprob) for token_id, logprob in output.top]
        entry = self._token(output.token_id, output.logprob) | {"top_logprobs": top}
        self._first = False
        return entry

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelling = self._speller.spell(token_id, first=self._first)
        return {"token": spelling.text, "logprob": max(logprob, LEAST), "bytes": list(spelling.data)}


class TextLogprobs:
    """`choices[].logprobs` of a text completion. `text_offset` counts characters of the answer, without the prompt."""

    def __init__(self, speller: Speller) -> None:
        self._speller = speller
        self._characters = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0
        self._first = True

    def write(self, outputs: Sequence[StepOutput]) -> dict[str, Any]:
        columns: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        for output in outputs:
            spelling = self._speller.spell(output.token_id, first=self._first)
            columns["tokens"].append(spelling.text)
            columns["token_logprobs"].append(max(output.logprob, LEAST))
            columns["top_logprobs"].append(self._top(spelling, output))
            columns["text_offset"].append(self._offset)
            self._offset += len(self._characters.decode(spelling.data))
            self._first = False
        return columns

    def _top(self, drawn: Spelling, output: StepOutput) -> dict[str, float]:
        """By text, the drawn token always among them; of two tokens with one text the more probable one counts."""
        top: dict[str, float] = {}
        for token_id, logprob in output.top:
            top.setdefault(self._speller.spell(token_id, first=self._first).text, max(logprob, LEAST))
        top.setdefault(drawn.text, max(output.logprob, LEAST))
        return top
