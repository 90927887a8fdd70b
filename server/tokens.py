"""The bytes of single tokens, for logprobs.

A token may be part of a character, so its text alone says little: callers get the true bytes, which joined are the
text of the answer. Reads the vocabulary as the tokenizer's own decoder would; knows no tokenizer library.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlhf_core.engine.text import text_decoder

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")
_SPACE = "\u2581"
_REPLACEMENT = "\ufffd"


@dataclass(frozen=True, slots=True)
class Spelling:
    """One token for people and for machines."""

    text: str
    """Printable: bytes that are no whole character are written like `\\xe2\\x82`; a special token by its name."""
    data: bytes
    """What the token adds to the answer's text: nothing for a special token."""


class Speller:
    """Spells the tokens of one tokenizer. Remembers what it has spelled, so make one for each answer."""

    def __init__(self, tokenizer: Any) -> None:
        self._piece = tokenizer.convert_ids_to_tokens
        self._decode = text_decoder(tokenizer)
        self._decoder = _decoder_state(tokenizer)
        self._special = frozenset(tokenizer.all_special_ids) | _special_added(tokenizer)
        self._alphabet = byte_alphabet() if b'"ByteLevel"' in self._decoder else {}
        self._known: dict[tuple[int, bool], Spelling] = {}

    def spell(self, token_id: int, *, first: bool = False) -> Spelling:
        """`first` in its answer: some decoders drop the space before it."""
        key = (token_id, first)
        if key not in self._known:
            self._known[key] = self._spell(token_id, first)
        return self._known[key]

    def _spell(self, token_id: int, first: bool) -> Spelling:
        piece: str | None = self._piece(token_id)
        if piece is None or token_id in self._special:
            return Spelling(piece or "", b"")
        data = self._bytes(token_id, piece)
        if first and data.startswith(b" ") and not self._decode([token_id]).startswith(" "):
            data = data[1:]
        return Spelling(_printable(data), data)

    def _bytes(self, token_id: int, piece: str) -> bytes:
        if self._alphabet:
            # As the decoder does: an added token that the alphabet cannot write stands for itself.
            known = all(character in self._alphabet for character in piece)
            return bytes(self._alphabet[character] for character in piece) if known else piece.encode()
        if b'"ByteFallback"' in self._decoder and (byte := _BYTE_TOKEN.fullmatch(piece)):
            return bytes([int(byte[1], 16)])
        if _SPACE in piece:
            return piece.replace(_SPACE, " ").encode()
        return self._decode([token_id]).encode()


def byte_alphabet() -> Mapping[str, int]:
    """The characters by which byte-level vocabularies write bytes: the printable ones of Latin-1 stand for themselves,
    the others are numbered from U+0100 on (GPT-2's `bytes_to_unicode`)."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + place): byte for place, byte in enumerate(others)}


def _decoder_state(tokenizer: Any) -> bytes:
    """The decoder's description, as JSON; empty where there is no Rust tokenizer below."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    return b"" if decoder is None else bytes(decoder.__getstate__())


def _special_added(tokenizer: Any) -> frozenset[int]:
    """Tokens that decoding leaves out though the tokenizer gives them no role."""
    added: Mapping[int, Any] = getattr(tokenizer, "added_tokens_decoder", {})
    return frozenset(token_id for token_id, token in added.items() if token.special)


def _printable(data: bytes) -> str:
    text = data.decode(errors="replace")
    return "".join(f"\\x{byte:02x}" for byte in data) if _REPLACEMENT in text else text
