"""The server-sent events of a stream, as bytes.

One frame a token and stream is what the server does most, so all of a frame but its text is encoded once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from rlhf_core.engine.sequence import StepOutput
from rlhf_core.records import FinishReason
from server.logprobs import ChatLogprobs, LogprobWriter, TextLogprobs
from server.tokens import Speller

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"

encode = msgspec.json.Encoder().encode


@dataclass(frozen=True, slots=True)
class Form:
    """How one of OpenAI's two routes writes a choice."""

    whole: str
    """`object` of a whole response."""
    chunk: str
    """`object` of a chunk."""
    first: bytes
    """What stands before the text of a choice's first chunk, and of its later ones, and after each."""
    later: bytes
    after: bytes
    nothing: bytes
    """The text of the chunk that brings the finish reason."""
    spoken: Callable[[str], dict[str, Any]]
    """The text as part of a whole choice."""
    logprobs: Callable[[Speller], LogprobWriter]


CHAT = Form(
    whole="chat.completion",
    chunk="chat.completion.chunk",
    first=b'"delta":{"role":"assistant","content":',
    later=b'"delta":{"content":',
    after=b"}",
    nothing=b'"delta":{}',
    spoken=lambda text: {"message": {"role": "assistant", "content": text, "refusal": None}},
    logprobs=ChatLogprobs,
)
TEXT = Form(
    whole="text_completion",
    chunk="text_completion",
    first=b'"text":',
    later=b'"text":',
    after=b"",
    nothing=b'"text":""',
    spoken=lambda text: {"text": text},
    logprobs=TextLogprobs,
)


def frame(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


class ChoiceFrames:
    """The frames of one choice, in order."""

    def __init__(
        self, form: Form, envelope: dict[str, Any], index: int, interaction_id: str, logprobs: LogprobWriter | None
    ) -> None:
        self._logprobs = logprobs
        self._unsent: list[StepOutput] = []
        """Tokens whose logprobs wait for text to go with."""
        start = b"data: " + encode(envelope)[:-1] + b',"choices":[{"index":%d,' % index
        self._start, self._next = start + form.first, start + form.later
        self._end = start + form.nothing
        self._after = form.after
        self._plain = form.after + b',"logprobs":null,"finish_reason":null}]'
        self._interaction_id = b',"interaction_id":' + encode(interaction_id)

    def tokens(self, batch: Sequence[StepOutput], close: bytes) -> bytes:
        """The frame of the next tokens, or nothing while they are part of a character. `close` ends the object."""
        text = batch[0].text if len(batch) == 1 else "".join([output.text for output in batch])
        if self._start:
            return self._first(batch, text, close)
        if self._logprobs is not None:
            return self._with_logprobs(self._logprobs, batch, text, close)
        if not text:
            return b""
        return b"".join((self._next, encode(text), self._plain, close))

    def _first(self, batch: Sequence[StepOutput], text: str, close: bytes) -> bytes:
        """The first frame goes out even without a whole character: it says that the answer has begun."""
        start, self._start = self._start, b""
        after = b"".join((self._after, b',"logprobs":null,"finish_reason":null', self._interaction_id, b"}]", close))
        if self._logprobs is None:
            return b"".join((start, encode(text), after))
        # OpenAI's client counts the logprobs of a choice's first chunk twice, so that one has none.
        return b"".join((start, b'""', after, self._with_logprobs(self._logprobs, batch, text, close)))

    def _with_logprobs(self, writer: LogprobWriter, batch: Sequence[StepOutput], text: str, close: bytes) -> bytes:
        self._unsent += batch
        if not text and not batch[-1].finished:
            return b""
        after = b'%b,"logprobs":%b,"finish_reason":null}]' % (self._after, encode(writer.write(self._unsent)))
        self._unsent.clear()
        return b"".join((self._next, encode(text), after, close))

    def finish(self, reason: FinishReason | None, close: bytes) -> bytes:
        return b'%b,"logprobs":null,"finish_reason":%b}]%b' % (self._end, encode(reason), close)
