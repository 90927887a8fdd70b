"""Frames that are put together from bytes are the JSON that an encoder would have written."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rlhf_core.engine.sequence import GenerationRequest, Sequence, StepOutput
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import Sampling
from server.frames import CHAT, TEXT, ChoiceFrames, Form, frame
from server.tokens import Speller

ENVELOPE = {"id": "chatcmpl-1", "object": "x", "created": 7}
SEQUENCE = Sequence(GenerationRequest("r", (1,), Sampling()), 8)
CLOSE = b"}\n\n"
NASTY = 'a "quote", a \\, a \n, \x00, é and 🙂'


def output(text: str, token_id: int = 5, finished: bool = False) -> StepOutput:
    return StepOutput(SEQUENCE, token_id, -0.5, text, finished)


def frames_of(form: Form, **fields: Any) -> ChoiceFrames:
    return ChoiceFrames(form, ENVELOPE, 2, "chatcmpl-9", fields.get("logprobs"))


def choice(body: bytes) -> dict[str, Any]:
    """The one choice of a frame, whose envelope is checked."""
    assert body.startswith(b"data: ")
    assert body.endswith(b"\n\n")
    value = json.loads(body[6:])
    (only,) = value.pop("choices")
    assert value == ENVELOPE
    assert isinstance(only, dict)
    return only


def test_the_chunks_of_a_chat(tiny_policy: LoadedPolicy) -> None:
    frames = frames_of(CHAT)
    open_ = {"logprobs": None, "finish_reason": None}
    assert choice(frames.tokens([output("")], CLOSE)) == {
        "index": 2,
        "delta": {"role": "assistant", "content": ""},
        **open_,
        "interaction_id": "chatcmpl-9",
    }
    assert choice(frames.tokens([output(NASTY)], CLOSE)) == {"index": 2, "delta": {"content": NASTY}, **open_}
    assert choice(frames.tokens([output("a"), output(""), output("b")], CLOSE))["delta"] == {"content": "ab"}
    assert choice(frames.finish("stop", CLOSE)) == {
        "index": 2,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_the_chunks_of_a_text() -> None:
    frames = frames_of(TEXT)
    first = choice(frames.tokens([output("a")], CLOSE))
    assert first == {
        "index": 2,
        "text": "a",
        "logprobs": None,
        "finish_reason": None,
        "interaction_id": "chatcmpl-9",
    }
    assert choice(frames.tokens([output(NASTY)], CLOSE))["text"] == NASTY
    assert choice(frames.finish("length", CLOSE))["finish_reason"] == "length"
    assert choice(frames.finish("length", CLOSE))["text"] == ""


@pytest.mark.parametrize("form", [CHAT, TEXT])
def test_part_of_a_character_after_the_first_chunk_waits(form: Form) -> None:
    frames = frames_of(form)
    frames.tokens([output("a")], CLOSE)
    assert frames.tokens([output(""), output("")], CLOSE) == b""


def test_logprobs_wait_for_text_or_for_the_end(tiny_policy: LoadedPolicy) -> None:
    frames = frames_of(CHAT, logprobs=CHAT.logprobs(Speller(tiny_policy.tokenizer)))
    role, first, rest = frames.tokens([output("a")], CLOSE).split(b"\n\n")
    assert (choice(role + b"\n\n")["delta"], rest) == ({"role": "assistant", "content": ""}, b"")
    written = [
        first + b"\n\n",
        frames.tokens([output("")], CLOSE),
        frames.tokens([output("b")], CLOSE),
        frames.tokens([output("", finished=True)], CLOSE),
    ]
    assert written[1] == b""
    assert [len(choice(body)["logprobs"]["content"]) for body in written if body] == [1, 2, 1]


def test_a_close_can_carry_usage() -> None:
    body = frames_of(CHAT).tokens([output("a")], b',"usage":{"total_tokens":3}}\n\n')
    assert json.loads(body[6:])["usage"] == {"total_tokens": 3}


def test_a_frame_is_one_event() -> None:
    assert frame({"error": "a\nb"}) == b'data: {"error":"a\\nb"}\n\n'
