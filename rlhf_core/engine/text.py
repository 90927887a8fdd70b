"""Tokens to text while they arrive: characters are never split, stop strings never shown. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""

_REPLACEMENT = "\ufffd"
_WINDOW = 16
_OVERLAP = 4
"""Tokens kept when the window moves on: a character has at most four bytes, so the last one is always whole.
"""


def text_decoder(tokenizer: Any) -> Decode:
    """The tokenizer's decoding without transformers' layers around it, where there is a Rust tokenizer below."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        return lambda token_ids: str(backend.decode(token_ids, skip_special_tokens=True))
    return lambda token_ids: str(tokenizer.decode(list(token_ids), skip_special_tokens=True))


class TextStream:
    """Text of one response. `push` each token, `finish` after the last one.

    Decoding is not additive (a decoder may strip the very first space, a character may span tokens), so a
    window of recent tokens is decoded as a whole and what has been shown of it is cut off.
    """

    def __init__(self, decode: Decode, stop: tuple[str, ...] = ()) -> None:
        self.stopped = False
        """A stop string was found: everything from it on is left out."""
        self._decode = decode
        self._stop = tuple(text for text in stop if text)
        self._window: list[int] = []
        self._shown = 0
        """Characters of the decoded window that were passed on."""
        self._held = ""
        """Decoded text that may be the beginning of a stop string."""

    def push(self, token_id: int) -> str:
        """Text that is certain after this token; often empty. Nothing more comes once `stopped`."""
        self._window.append(token_id)
        text = self._decode(self._window)
        if text.endswith(_REPLACEMENT):
            return ""
        new = text[self._shown :]
        self._shown = len(text)
        if len(self._window) > _WINDOW:
            self._window = self._window[-_OVERLAP:]
            self._shown = len(self._decode(self._window))
        return self._release(new) if self._stop else new

    def finish(self) -> str:
        """What was held back. An unfinished character at the very end is dropped."""
        if self.stopped:
            return ""
        rest = self._decode(self._window)[self._shown :].rstrip(_REPLACEMENT)
        released = self._release(rest) + ("" if self.stopped else self._held)
        self._held = ""
        return released

    def _release(self, new: str) -> str:
        self._held += new
        found = [index for text in self._stop if (index := self._held.find(text)) >= 0]
        if found:
            self.stopped = True
            released, self._held = self._held[: min(found)], ""
            return released
        keep = max((_overlap(self._held, text) for text in self._stop), default=0)
        released, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return released


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
