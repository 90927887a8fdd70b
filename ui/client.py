"""The UI's only input and output: typed calls to the HTTP API.

Every failure, whether the API refused, broke off or cannot be reached, is an ApiError whose text is one sentence for a
person. Methods block; an `ApiClient` may be shared by threads. The bearer key stays in this process.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar
from urllib.parse import quote

import httpx
import msgspec

from rlhf_core.errors import AttuneError
from rlhf_core.records import ChoiceValue, Message, RatingValue, ReportCategory
from ui.replies import (
    ChatAnswer,
    ChatEvent,
    ChoiceReceipt,
    ComparisonEvent,
    Rating,
    RatingReceipt,
    Status,
    StoredConversation,
)

CALL_SECONDS = 10.0
STREAM_SECONDS = 120.0
"""Longest silence inside a stream: a request may wait for a free slot before its first token."""
T = TypeVar("T")


class ApiError(AttuneError):
    """The API refused or could not be asked. `status` is 0 when there was no answer at all."""

    def __init__(self, sentence: str, status: int = 0) -> None:
        super().__init__(sentence)
        self.status = status


class ApiClient:
    def __init__(self, base_url: str, api_key: str = "", *, call_seconds: float = CALL_SECONDS) -> None:
        self.base_url = base_url.rstrip("/")
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # trust_env=False: a proxy meant for the internet must not stand between two processes of one installation.
        self._http = httpx.Client(
            base_url=self.base_url,
            headers=headers,
            timeout=httpx.Timeout(call_seconds, connect=2.0),
            limits=httpx.Limits(max_connections=256, max_keepalive_connections=16),
            trust_env=False,
        )

    def close(self) -> None:
        self._http.close()

    # Chat.

    def chat_stream(
        self,
        messages: Sequence[Message],
        *,
        conversation_id: str = "",
        user: str = "",
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> Generator[ChatEvent, None, None]:
        """Stream one answer. Closing the iterator ends the request, and the server stops generating."""
        body = _chat_body(messages, conversation_id, user, temperature, max_tokens) | {"stream": True}
        with self._stream("POST", "/v1/chat/completions", body) as response:
            interaction_id = response.headers.get("x-interaction-id", "")
            version = _whole(response.headers.get("x-policy-version", ""))
            finished = False
            for data in _server_sent(response):
                event = _chat_event(data, interaction_id, version)
                interaction_id, version = event.interaction_id, event.policy_version
                finished = finished or event.finish is not None
                yield event
        if not finished:
            raise ApiError("The answer broke off before its end.")

    def chat(
        self,
        messages: Sequence[Message],
        *,
        conversation_id: str = "",
        user: str = "",
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> ChatAnswer:
        body = _chat_body(messages, conversation_id, user, temperature, max_tokens)
        data = self._call("POST", "/v1/chat/completions", dict[str, Any], body)
        choice = data["choices"][0]
        return ChatAnswer(
            interaction_id=data["id"],
            text=choice["message"]["content"] or "",
            policy_version=_version_of(data),
            finish_reason=choice["finish_reason"],
        )

    def conversation(self, conversation_id: str) -> StoredConversation:
        return self._call("GET", f"/v1/conversations/{quote(conversation_id, safe='')}", StoredConversation)

    # Ratings.

    def rate(
        self,
        interaction_id: str,
        value: RatingValue,
        reasons: Sequence[str] = (),
        comment: str = "",
        rater: str | None = None,
    ) -> RatingReceipt:
        """Set my rating; a second call replaces the first. Without `rater`, the one who asked is the one who rates."""
        body: dict[str, Any] = {"value": value}
        if reasons:
            body["reasons"] = list(reasons)
        if comment:
            body["comment"] = comment
        return self._call("PUT", _rating_path(interaction_id), RatingReceipt, body, rater=rater)

    def withdraw(self, interaction_id: str, rater: str | None = None) -> None:
        self._call("DELETE", _rating_path(interaction_id), type(None), rater=rater)

    def rating(self, interaction_id: str, rater: str | None = None) -> Rating:
        return self._call("GET", _rating_path(interaction_id), Rating, rater=rater)

    # Reports.

    def report(self, interaction_id: str, category: ReportCategory, note: str = "", rater: str | None = None) -> None:
        """Report an answer to whoever moderates; a second report replaces the first."""
        body = {"category": category, "note": note}
        self._call("POST", _report_path(interaction_id), dict[str, Any], body, rater=rater)

    def withdraw_report(self, interaction_id: str, rater: str | None = None) -> None:
        self._call("DELETE", _report_path(interaction_id), type(None), rater=rater)

    # Comparisons.

    def compare(self, messages: Sequence[Message], *, user: str = "", max_tokens: int | None = None) -> str:
        """Start two answers to one prompt; returns the comparison id."""
        body: dict[str, Any] = {"messages": msgspec.to_builtins(list(messages))}
        if user:
            body["user"] = user
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        comparison_id: str = self._call("POST", "/v1/comparisons", dict[str, Any], body)["comparison_id"]
        return comparison_id

    def comparison_events(self, comparison_id: str) -> Generator[ComparisonEvent, None, None]:
        with self._stream("GET", f"{_comparison_path(comparison_id)}/events") as response:
            for data in _server_sent(response):
                event = msgspec.convert(data, ComparisonEvent)
                yield event
                if event.done:
                    return
        raise ApiError("The comparison broke off before both answers were complete.")

    def choose(self, comparison_id: str, choice: ChoiceValue, rater: str | None = None) -> ChoiceReceipt:
        path = f"{_comparison_path(comparison_id)}/choice"
        return self._call("PUT", path, ChoiceReceipt, {"choice": choice}, rater=rater)

    # Status.

    def status(self) -> Status:
        return self._call("GET", "/v1/status", Status)

    # Transport.

    def _call(
        self,
        method: str,
        path: str,
        shape: type[T],
        body: dict[str, Any] | None = None,
        rater: str | None = None,
    ) -> T:
        headers = {"x-rater": rater} if rater else {}
        try:
            response = self._http.request(method, path, json=body, headers=headers)
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error
        _raise_for_status(response)
        if not response.content:
            return msgspec.convert(None, shape)
        try:
            return msgspec.json.decode(response.content, type=shape)
        except msgspec.MsgspecError as error:
            raise ApiError(f"The API's answer to {method} {path} has an unexpected shape: {error}.") from error

    @contextmanager
    def _stream(self, method: str, path: str, body: dict[str, Any] | None = None) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(STREAM_SECONDS, connect=2.0)
        try:
            with self._http.stream(method, path, json=body, timeout=timeout) as response:
                if response.is_error:
                    response.read()
                _raise_for_status(response)
                yield response
        except httpx.HTTPError as error:
            raise self._unreachable(error) from error

    def _unreachable(self, error: httpx.HTTPError) -> ApiError:
        if isinstance(error, httpx.ReadTimeout):
            return ApiError(f"The API at {self.base_url} did not answer in time.")
        if isinstance(error, httpx.RemoteProtocolError | httpx.ReadError):
            return ApiError(f"The connection to the API at {self.base_url} broke off.")
        return ApiError(f"The API at {self.base_url} is not reachable.")


def _rating_path(interaction_id: str) -> str:
    return f"/v1/interactions/{quote(interaction_id, safe='')}/rating"


def _report_path(interaction_id: str) -> str:
    return f"/v1/interactions/{quote(interaction_id, safe='')}/reports"


def _comparison_path(comparison_id: str) -> str:
    return f"/v1/comparisons/{quote(comparison_id, safe='')}"


def _chat_body(
    messages: Sequence[Message],
    conversation_id: str,
    user: str,
    temperature: float | None,
    max_tokens: int | None,
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "live", "messages": msgspec.to_builtins(list(messages))}
    optional: dict[str, Any] = {"user": user or None, "temperature": temperature, "max_tokens": max_tokens}
    if conversation_id:
        optional["metadata"] = {"conversation_id": conversation_id}
    return body | {name: value for name, value in optional.items() if value is not None}


def _server_sent(response: httpx.Response) -> Iterator[dict[str, Any]]:
    """The JSON objects of an event stream, up to `[DONE]`. An error object inside the stream is raised."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        text = line.removeprefix("data:").strip()
        if text == "[DONE]":
            return
        data: dict[str, Any] = msgspec.json.decode(text)
        if isinstance(data.get("error"), dict):
            raise ApiError(_sentence(str(data["error"].get("message", ""))), response.status_code)
        yield data


def _chat_event(data: dict[str, Any], interaction_id: str, version: int) -> ChatEvent:
    choices = data.get("choices") or [{}]
    return ChatEvent(
        interaction_id=data.get("id") or interaction_id,
        policy_version=_version_of(data) or version,
        delta=(choices[0].get("delta") or {}).get("content") or "",
        finish=choices[0].get("finish_reason"),
    )


def _version_of(data: dict[str, Any]) -> int:
    """The policy version out of `model: policy@<version>`; 0 when it says something else."""
    return _whole(str(data.get("model", "")).removeprefix("policy@"))


def _whole(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _raise_for_status(response: httpx.Response) -> None:
    if response.is_success:
        return
    raise ApiError(_error_sentence(response), response.status_code)


def _error_sentence(response: httpx.Response) -> str:
    """One sentence from either error shape: OpenAI's `error.message`, or problem+json's `detail` or `title`."""
    try:
        data = msgspec.json.decode(response.content)
    except msgspec.DecodeError:
        data = None
    if not isinstance(data, dict):
        return f"The API answered with status {response.status_code}."
    error = data.get("error")
    message = error.get("message") if isinstance(error, dict) else data.get("detail") or data.get("title")
    return _sentence(str(message or f"the API answered with status {response.status_code}"))


def _sentence(text: str) -> str:
    text = text.strip() or "the API reported an error without a message"
    return text[0].upper() + text[1:] + ("" if text[-1] in ".!?" else ".")
