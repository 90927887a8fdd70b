"""The HTTP shapes that others dictate, checked where they enter and turned into records at once.

A chat field that we know is honoured or refused by name; a field nobody has defined is ignored and named in a response
header. Our own routes refuse unknown fields.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import Message, Sampling
from server.bodies import Body, convert, decode_object, unsupported

DEFAULT_MAX_TOKENS = 256
MAX_MESSAGES = 512
MAX_N = 8

Generating = TypeVar("Generating", bound="GenerationBody")
Pairs = dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]]
Metadata = Annotated[Pairs, Meta(max_length=16)]
Name = Annotated[str, Meta(max_length=256)]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
Penalty = Annotated[float, Meta(ge=-2.0, le=2.0)]
TopLogprobs = Annotated[int, Meta(ge=0, le=20)]
PromptItem = str | int | tuple[int, ...]
StopString = Annotated[str, Meta(min_length=1, max_length=128)]


class ContentPart(msgspec.Struct, frozen=True):
    type: str
    text: str = ""


class WireMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as OpenAI's clients send it."""

    role: str
    content: str | tuple[ContentPart, ...] | None = None


class StreamOptions(msgspec.Struct, frozen=True, kw_only=True):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationBody(msgspec.Struct, frozen=True, kw_only=True):
    """What both generating routes honour. `null` means the default, as in OpenAI's API."""

    default_max_tokens: ClassVar[int] = DEFAULT_MAX_TOKENS

    model: Name | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_N)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: StopString | Annotated[tuple[StopString, ...], Meta(max_length=4)] | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    metadata: Metadata | None = None
    store: bool | None = None

    def sampling(self, choice: int = 0) -> Sampling:
        """How the answer of that index is drawn: the first by the seed itself, so that `n` does not change it."""
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            min_p=self.min_p or 0.0,
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            max_tokens=self.max_completion_tokens or self.max_tokens or self.default_max_tokens,
            seed=None if self.seed is None else choice_seed(self.seed, choice),
            stop=(self.stop,) if isinstance(self.stop, str) else self.stop or (),
        )


class ChatRequest(GenerationBody, frozen=True, kw_only=True):
    """The body of a chat completion."""

    messages: Annotated[tuple[WireMessage, ...], Meta(min_length=1, max_length=MAX_MESSAGES)]
    logprobs: bool | None = None
    top_logprobs: TopLogprobs | None = None


class TextRequest(GenerationBody, frozen=True, kw_only=True):
    """The body of a text completion: one prompt or several, each text or token ids."""

    default_max_tokens: ClassVar[int] = 16
    """As in OpenAI's API."""

    prompt: str | tuple[PromptItem, ...]
    logprobs: TopLogprobs | None = None
    """How many alternatives to name at each token; 0 names the drawn one only."""


def choice_seed(seed: int, choice: int) -> int:
    """The seed of one of several answers: `seed` for the first, and unrelated 63-bit numbers for the others."""
    if choice == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{choice}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class ComparisonBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    messages: Annotated[tuple[WireMessage, ...], Meta(min_length=1, max_length=MAX_MESSAGES)]
    max_tokens: Tokens | None = None
    user: Name | None = None
    metadata: Metadata | None = None


OFF: Mapping[str, tuple[object, ...]] = {
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "logit_bias": (None, {}),
    "best_of": (None, 1),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "stop_token_ids": (None, []),
    "bad_words": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "use_beam_search": (None, False),
    "echo": (None, False),
    "suffix": (None, ""),
    "prompt_logprobs": (None, 0),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "service_tier": (None, "auto", "default"),
    "chat_template": (None,),
    "chat_template_kwargs": (None, {}),
    "add_generation_prompt": (None, True),
    "continue_final_message": (None, False),
    "structured_outputs": (None,),
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
}
"""Fields that we know and do not implement, with the values that ask for nothing; others are refused by name."""

HARMLESS = frozenset({"parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention"})
"""Fields that cannot change an answer here."""

OFF_FOR_TEXT = {"top_logprobs": (None, 0)}
"""Text completions ask for alternatives by the number of `logprobs`."""
KNOWN = frozenset(OFF) | frozenset(OFF_FOR_TEXT) | HARMLESS
ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
MESSAGE_OFF = ("name", "tool_calls", "tool_call_id", "function_call", "audio")


def parse_chat(body: bytes) -> tuple[ChatRequest, tuple[str, ...]]:
    """The request, and the names in it that nobody has defined. Raises InvalidRequestError."""
    raw = decode_object(body)
    request = _convert_known(raw, ChatRequest, OFF)
    _refuse_message_fields(raw["messages"])
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequestError("top_logprobs goes with logprobs: true only", param="top_logprobs")
    return request, _undefined(raw, ChatRequest)


def parse_text(body: bytes) -> tuple[TextRequest, tuple[str, ...]]:
    """The same for a text completion."""
    raw = decode_object(body)
    request = _convert_known(raw, TextRequest, {**OFF, **OFF_FOR_TEXT})
    return request, _undefined(raw, TextRequest)


def _convert_known(raw: dict[str, Any], wanted: type[Generating], off: Mapping[str, tuple[object, ...]]) -> Generating:
    for name, values in off.items():
        if name in raw and raw[name] not in values:
            raise unsupported(name, raw[name])
    request = convert(raw, wanted)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options goes with stream: true only", param="stream_options")
    longest = request.sampling().max_tokens
    if (request.min_tokens or 0) > longest:
        message = f"min_tokens is {request.min_tokens}, more than the {longest} of max_tokens"
        raise InvalidRequestError(message, param="min_tokens")
    return request


def _undefined(raw: dict[str, Any], wanted: type[GenerationBody]) -> tuple[str, ...]:
    return tuple(sorted(set(raw) - KNOWN - set(wanted.__struct_fields__)))


def parse(body: bytes, wanted: type[Body]) -> Body:
    """A body of one of our own routes. Raises InvalidRequestError naming the field and its value."""
    return convert(decode_object(body), wanted)


def to_messages(wire: tuple[WireMessage, ...]) -> tuple[Message, ...]:
    """The conversation as records. Raises InvalidRequestError for roles, parts and texts that cannot be served."""
    messages = tuple(_message(index, message) for index, message in enumerate(wire))
    if messages[-1].role != "user":
        param = f"messages[{len(messages) - 1}].role"
        raise InvalidRequestError(f"the last message is from {messages[-1].role!r}, not from 'user'", param=param)
    return messages


def _message(index: int, message: WireMessage) -> Message:
    place = f"messages[{index}]"
    role = ROLES.get(message.role)
    if role is None:
        known = ", ".join(ROLES)
        raise InvalidRequestError(f"{place}.role is {message.role[:80]!r}; known are {known}", param=f"{place}.role")
    content = _text(place, message.content)
    # A policy may answer nothing, and the conversation goes on: only what people and systems say must say something.
    if role != "assistant" and not content.strip():
        raise InvalidRequestError(f"{place}.content is empty", param=f"{place}.content")
    return Message(role, content)


def _text(place: str, content: str | tuple[ContentPart, ...] | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    for index, part in enumerate(content):
        if part.type != "text":
            raise unsupported(f"{place}.content[{index}].type", part.type)
    return "".join(part.text for part in content)


def _refuse_message_fields(messages: list[dict[str, Any]]) -> None:
    for index, message in enumerate(messages):
        for name in MESSAGE_OFF:
            if message.get(name) not in (None, []):
                raise unsupported(f"messages[{index}].{name}", message[name])
