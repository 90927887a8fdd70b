"""Tokens to bytes: joined, they are the text."""

from __future__ import annotations

from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlhf_core.models.load import LoadedPolicy
from server.tokens import Speller, byte_alphabet

HARD = "naïve 日本語 🙂 the quick\n\tfox  …"


def joined(tokenizer: Any, token_ids: list[int]) -> bytes:
    speller = Speller(tokenizer)
    return b"".join(speller.spell(token, first=place == 0).data for place, token in enumerate(token_ids))


def byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """As Llama 2 has it: spaces are U+2581, unknown characters fall back to bytes, the very first space is dropped."""
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", "a", "b", "\u2581b"]
    vocabulary = {piece: place for place, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, [("\u2581", "b")], byte_fallback=True, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


def test_the_bytes_of_a_byte_level_vocabulary_are_the_text(tiny_policy: LoadedPolicy) -> None:
    token_ids = tiny_policy.tokenizer.encode(HARD)
    assert joined(tiny_policy.tokenizer, token_ids).decode() == HARD


def test_part_of_a_character_has_bytes_and_no_text(tiny_policy: LoadedPolicy) -> None:
    speller = Speller(tiny_policy.tokenizer)
    # é is C3 A9 in UTF-8, and this tokenizer has merged neither with anything.
    first, second = tiny_policy.tokenizer.encode("é")
    assert (speller.spell(first).data, speller.spell(first).text) == (b"\xc3", "\\xc3")
    assert (speller.spell(second).data, speller.spell(second).text) == (b"\xa9", "\\xa9")


def test_a_special_token_has_a_name_and_adds_nothing(tiny_policy: LoadedPolicy) -> None:
    spelling = Speller(tiny_policy.tokenizer).spell(1)
    assert (spelling.text, spelling.data) == ("<|end|>", b"")


def test_a_token_beyond_the_vocabulary_is_empty(tiny_policy: LoadedPolicy) -> None:
    spelling = Speller(tiny_policy.tokenizer).spell(100_000)
    assert (spelling.text, spelling.data) == ("", b"")


def test_an_added_token_that_is_not_special_stands_for_itself(tiny_policy: LoadedPolicy, tmp_path: Any) -> None:
    tiny_policy.tokenizer.save_pretrained(tmp_path)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    tokenizer.add_tokens([AddedToken("日 本", special=False)])
    token_ids = tokenizer.encode("x日 本y")
    assert len(token_ids) == 3
    assert joined(tokenizer, token_ids).decode() == "x日 本y" == tokenizer.decode(token_ids)


@pytest.mark.parametrize("text", ["a b", "b a", "ab  é🙂b", "🙂", "日 b"])
def test_byte_fallback_and_metaspace_are_read_too(text: str) -> None:
    tokenizer = byte_fallback_tokenizer()
    token_ids = tokenizer.encode(text)
    assert joined(tokenizer, token_ids).decode() == tokenizer.decode(token_ids) == text


def test_only_the_first_token_loses_its_space() -> None:
    tokenizer = byte_fallback_tokenizer()
    speller = Speller(tokenizer)
    spaced = tokenizer.convert_tokens_to_ids("\u2581b")
    assert (speller.spell(spaced, first=True).data, speller.spell(spaced).data) == (b"b", b" b")
    newline = tokenizer.convert_tokens_to_ids("<0x0A>")
    assert speller.spell(newline, first=True).data == b"\n"


def test_the_alphabet_writes_every_byte_once() -> None:
    alphabet = byte_alphabet()
    assert sorted(alphabet.values()) == list(range(256))
    # The first unprintable byte is 0 and is written U+0100; the space is the 33rd of them (0 to 32): U+0120.
    assert (alphabet["\u0100"], alphabet["\u0120"], alphabet["A"]) == (0, 32, 65)
