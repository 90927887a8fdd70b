"""Exceptions to HTTP: one table, two shapes.

`/v1/chat/*`, `/v1/completions` and `/v1/models` answer in OpenAI's shape, because other people's clients read it;
everything else answers RFC 9457 `application/problem+json`. A stream that already began carries the same error object
in a frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from rlhf_core.errors import (
    AttuneError,
    ConflictError,
    GoneError,
    InvalidRequestError,
    NotFoundError,
    OverloadedError,
    StoreUnavailableError,
)

RETRY_AFTER_SECONDS = 1
LEFT_EARLY = "client disconnected prematurely"
"""How Litestar says that a client hung up within its body: as an error of the server, which it is not."""
OPENAI_PATHS = ("/v1/chat", "/v1/completions", "/v1/models")


class DrainingError(OverloadedError):
    """The server is on its way out; another replica, or a later try, will answer."""

    def __init__(self) -> None:
        super().__init__("the server is shutting down")


class UnknownModelError(NotFoundError):
    """No policy of that name can start a new answer."""


class GenerationFailedError(AttuneError):
    """A step of the engine raised; the answers that it was computing are lost."""


class ClientGoneError(AttuneError):
    """The caller hung up before there was anything to send."""


@dataclass(frozen=True)
class Fault:
    """What a caller learns of an error. `param` names the field, where there is one."""

    status: int
    code: str
    message: str
    param: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """OpenAI's coarse class of the error."""
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"


FAULTS: tuple[tuple[type[AttuneError], int, str], ...] = (
    (InvalidRequestError, 400, "invalid_value"),
    (UnknownModelError, 404, "model_not_found"),
    (NotFoundError, 404, "not_found"),
    (GoneError, 410, "gone"),
    (ConflictError, 409, "conflict"),
    (DrainingError, 503, "server_draining"),
    (OverloadedError, 429, "rate_limit_exceeded"),
    (StoreUnavailableError, 503, "store_unavailable"),
    (ClientGoneError, 499, "client_closed_request"),
    (GenerationFailedError, 500, "generation_failed"),
)
"""First match wins: a subclass stands before its base."""

HTTP_CODES = {
    400: "bad_request",
    401: "invalid_api_key",
    404: "unknown_path",
    405: "method_not_allowed",
    413: "request_too_large",
}
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    422: "Unprocessable Content",
    429: "Too Many Requests",
    499: "Client Closed Request",
    503: "Service Unavailable",
}


def fault_of(error: Exception) -> Fault:
    """The public face of any exception; what nobody foresaw shows nothing of itself."""
    if isinstance(error, HTTPException) and error.status_code < 500:
        code = HTTP_CODES.get(error.status_code, "bad_request")
        return Fault(error.status_code, code, error.detail, headers=dict(error.headers or {}))
    for kind, status, code in FAULTS:
        if isinstance(error, kind):
            return _known_fault(error, status, code)
    return Fault(500, "internal_error", "the server failed to answer; its log says why")


def _known_fault(error: AttuneError, status: int, code: str) -> Fault:
    if isinstance(error, InvalidRequestError):
        return Fault(status, error.code, str(error), error.param)
    headers = {}
    if status in (429, 503):
        headers = {"retry-after": str(RETRY_AFTER_SECONDS), "retry-after-ms": str(RETRY_AFTER_SECONDS * 1000)}
    if status == 409:
        # The OpenAI clients repeat a 409 by themselves; repeating will not change a state.
        headers = {"x-should-retry": "false"}
    return Fault(status, code, str(error), "model" if isinstance(error, UnknownModelError) else None, headers)


def openai_body(fault: Fault) -> dict[str, Any]:
    """`{"error": ...}` as the OpenAI clients read it: all strings, or null."""
    error = {"message": fault.message, "type": fault.type, "param": fault.param, "code": fault.code}
    return {"error": error}


def problem_body(fault: Fault, status: int, path: str) -> dict[str, Any]:
    title = TITLES.get(status, "Internal Server Error")
    body = {"type": "about:blank", "title": title, "status": status, "detail": fault.message}
    body |= {"instance": path, "code": fault.code}
    return body if fault.param is None else body | {"param": fault.param}


def respond(request: Request[Any, Any, Any], error: Exception) -> Response[bytes]:
    """The exception handler of the whole app."""
    if isinstance(error, HTTPException) and error.detail == LEFT_EARLY:
        error = ClientGoneError("the client left before its request was whole")
    fault = fault_of(error)
    path = request.scope["path"]
    if fault.status >= 500 and not isinstance(error, AttuneError):
        structlog.get_logger().error("request failed", path=path, exc_info=error)
    if path.startswith(OPENAI_PATHS):
        return _json(openai_body(fault), fault.status, "application/json", fault.headers)
    status = fault.status
    if isinstance(error, InvalidRequestError) and fault.code != "invalid_json":
        status = 422
    return _json(problem_body(fault, status, path), status, "application/problem+json", fault.headers)


def _json(body: dict[str, Any], status: int, media_type: str, headers: dict[str, str]) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=status, media_type=media_type, headers=headers)
