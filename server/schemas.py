"""The HTTP shapes that others dictate, checked where they enter and turned into records at once.

A chat field that we know is honoured or refused by name; a field nobody has defined is ignored and named in a response
header. Our own routes refuse unknown fields.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import REASONS, ChoiceValue, Message, RatingValue, Sampling

DEFAULT_MAX_TOKENS = 256
MAX_MESSAGES = 512

Body = TypeVar("Body")
Pairs = dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]]
Metadata = Annotated[Pairs, Meta(max_length=16)]
Name = Annotated[str, Meta(max_length=256)]
Tokens = Annotated[int, Meta(ge=1, le=1_000_000)]
StopString = Annotated[str, Meta(min_length=1, max_length=128)]
Reasons = Annotated[tuple[str, ...], Meta(max_length=5)]
Comment = Annotated[str, Meta(max_length=4000)]


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


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """The body of a chat completion: what we honour. `null` means the default, as in OpenAI's API."""

    messages: Annotated[tuple[WireMessage, ...], Meta(min_length=1, max_length=MAX_MESSAGES)]
    model: Name | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=-1, le=1_000_000)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None
    stop: StopString | Annotated[tuple[StopString, ...], Meta(max_length=4)] | None = None
    logprobs: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: Annotated[int, Meta(ge=0, le=1_000_000)] | None = None
    user: Name | None = None
    safety_identifier: Name | None = None
    metadata: Metadata | None = None
    store: bool | None = None

    @property
    def sampling(self) -> Sampling:
        return Sampling(
            temperature=1.0 if self.temperature is None else self.temperature,
            top_p=1.0 if self.top_p is None else self.top_p,
            top_k=max(0, self.top_k or 0),
            max_tokens=self.max_completion_tokens or self.max_tokens or DEFAULT_MAX_TOKENS,
            seed=self.seed,
            stop=(self.stop,) if isinstance(self.stop, str) else self.stop or (),
        )


class RatingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    value: RatingValue
    reasons: Reasons = ()
    comment: Comment = ""


class ChoiceBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    choice: ChoiceValue
    reasons: Reasons = ()
    comment: Comment = ""


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
    "n": (None, 1),
    "best_of": (None, 1),
    "top_logprobs": (None, 0),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "length_penalty": (None, 1),
    "min_p": (None, 0),
    "stop_token_ids": (None, []),
    "bad_words": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "use_beam_search": (None, False),
    "echo": (None, False),
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

KNOWN = frozenset(ChatRequest.__struct_fields__) | frozenset(OFF) | HARMLESS
ROLES: Mapping[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
MESSAGE_OFF = ("name", "tool_calls", "tool_call_id", "function_call", "audio")


def parse_chat(body: bytes) -> tuple[ChatRequest, tuple[str, ...]]:
    """The request, and the names in it that nobody has defined. Raises InvalidRequestError."""
    raw = _decode_object(body)
    for name, off in OFF.items():
        if name in raw and raw[name] not in off:
            raise _unsupported(name, raw[name])
    request = _convert(raw, ChatRequest)
    _refuse_message_fields(raw["messages"])
    if request.stream_options is not None and not request.stream:
        raise InvalidRequestError("stream_options goes with stream: true only", param="stream_options")
    return request, tuple(sorted(set(raw) - KNOWN))


def parse(body: bytes, wanted: type[Body]) -> Body:
    """A body of one of our own routes. Raises InvalidRequestError naming the field and its value."""
    return _convert(_decode_object(body), wanted)


def check_reasons(reasons: tuple[str, ...]) -> None:
    for index, reason in enumerate(reasons):
        if reason not in REASONS:
            known = ", ".join(sorted(REASONS))
            raise InvalidRequestError(f"reasons[{index}] is {reason[:80]!r}; known are {known}", param="reasons")


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
            raise _unsupported(f"{place}.content[{index}].type", part.type)
    return "".join(part.text for part in content)


def _refuse_message_fields(messages: list[dict[str, Any]]) -> None:
    for index, message in enumerate(messages):
        for name in MESSAGE_OFF:
            if message.get(name) not in (None, []):
                raise _unsupported(f"messages[{index}].{name}", message[name])


def _unsupported(name: str, value: object) -> InvalidRequestError:
    message = f"{name} is {_short(value)}, which this server does not support"
    return InvalidRequestError(message, param=name, code="unsupported_parameter")


def _decode_object(body: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise InvalidRequestError(f"the body is {_short(raw)}, not a JSON object", code="invalid_json")
    return raw


def _convert(raw: dict[str, Any], wanted: type[Body]) -> Body:
    try:
        return msgspec.convert(raw, wanted)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$")
        param = path.rstrip("`").lstrip(".")
        named = re.search(r"field `(\w+)`", problem)
        if named:
            param = f"{param}.{named[1]}".lstrip(".")
            raise InvalidRequestError(problem, param=param) from None
        raise InvalidRequestError(f"{param} is {_short(_at(raw, param))}: {problem}", param=param) from None


def _at(raw: Any, path: str) -> Any:
    """The value that a msgspec path such as `messages[0].role` names; the whole where the path has a wildcard."""
    value = raw
    for name in re.findall(r"[^.\[\]]+", path):
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, ValueError, IndexError, TypeError):
            return value
    return value


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
