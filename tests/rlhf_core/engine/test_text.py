from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_core.engine.text import Decode, TextStream, text_decoder


def decode_bytes(token_ids: object) -> str:
    """One byte per token."""
    return bytes(token_ids).decode("utf-8", errors="replace")  # type: ignore[call-overload, no-any-return]


def pieces(text: bytes, stop: tuple[str, ...] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(decode_bytes, stop)
    shown = []
    for byte in text:
        shown.append(stream.push(byte))
        if stream.stopped:
            break
    shown.append(stream.finish())
    return shown, stream


def test_a_character_of_several_bytes_comes_whole() -> None:
    shown, _ = pieces("aé€🦊b".encode())
    # é is 2 bytes, € 3 and the fox 4: nothing before the last byte of each.
    assert shown == ["a", "", "é", "", "", "€", "", "", "", "🦊", "b", ""]


def test_an_unfinished_character_at_the_end_is_dropped() -> None:
    shown, _ = pieces(b"ok" + "🦊".encode()[:3])
    assert "".join(shown) == "ok"


def test_invalid_bytes_in_the_middle_are_shown_as_replacement_and_hold_nothing_up() -> None:
    shown, _ = pieces(b"a\xffb")
    assert "".join(shown) == "a\ufffdb"


def test_long_texts_come_whole_though_only_a_window_is_decoded() -> None:
    text = "Grüße an den Fuchs 🦊 und die Straße — " * 20
    shown, _ = pieces(text.encode())
    assert "".join(shown) == text
    assert all("\ufffd" not in piece for piece in shown)


def test_a_stop_string_is_cut_with_all_that_follows() -> None:
    shown, stream = pieces(b"yes.\n\nUser: no", stop=("\n\nUser:",))
    assert "".join(shown) == "yes."
    assert stream.stopped


def test_the_beginning_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    shown, stream = pieces(b"a<b<e", stop=("<end>",))
    # "<" is held, then shown with "b"; "<e" is held until the end and then shown, for no stop came.
    assert shown == ["a", "", "<b", "", "", "<e"]
    assert not stream.stopped


def test_the_first_of_several_stop_strings_counts() -> None:
    shown, _ = pieces(b"one two three", stop=("three", "two"))
    assert "".join(shown) == "one "


def test_of_two_stop_strings_in_one_token_the_earlier_counts() -> None:
    stream = TextStream(lambda _: "one two three", ("three", "two"))
    assert stream.push(0) + stream.finish() == "one "


def test_a_stop_string_within_repeated_beginnings_is_found() -> None:
    shown, stream = pieces(b"aaab", stop=("aab",))
    assert "".join(shown) == "a"
    assert stream.stopped


@pytest.fixture
def decode(tiny_model_dir: Path) -> Decode:
    from transformers import AutoTokenizer

    return text_decoder(AutoTokenizer.from_pretrained(tiny_model_dir))


def test_special_tokens_never_appear(decode: Decode) -> None:
    stream = TextStream(decode)
    # 1 is <|end|>, 3 is <|user|>; 262 is "he" in the tiny tokenizer.
    assert "".join([stream.push(token_id) for token_id in (1, 262, 3, 262)]) == "hehe"


def test_streamed_text_is_the_decoded_whole_for_a_decoder_that_strips_the_first_space() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {char: i for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteLevel(), decoders.Strip(content=" ", left=1, right=0)])
    token_ids = tokenizer.encode(" Hello there, a  longer answer with é in it, to move the window on.").ids
    stream = TextStream(lambda ids: str(tokenizer.decode(ids)))
    shown = "".join(stream.push(token_id) for token_id in token_ids) + stream.finish()
    assert shown == "Hello there, a  longer answer with é in it, to move the window on."
