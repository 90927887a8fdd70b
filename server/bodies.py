"""JSON bodies to typed requests, with errors that name the field and show its value."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from rlhf_core.errors import InvalidRequestError

Body = TypeVar("Body")


def unsupported(name: str, value: object) -> InvalidRequestError:
    message = f"{name} is {_short(value)}, which this server does not support"
    return InvalidRequestError(message, param=name, code="unsupported_parameter")


def decode_object(body: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidRequestError(f"the body is not JSON: {error}", code="invalid_json") from None
    if not isinstance(raw, dict):
        raise InvalidRequestError(f"the body is {_short(raw)}, not a JSON object", code="invalid_json")
    return raw


def convert(raw: dict[str, Any], wanted: type[Body]) -> Body:
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
