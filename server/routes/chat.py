"""OpenAI's chat completions and models. A prompt in, tokens out, an interaction stored.

Knows the wire and the order of acts; nothing of tensors.
"""

from __future__ import annotations

import re
import time
from typing import Any

import msgspec
from litestar import Request, Response, get, post
from litestar.response import Stream

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import Interaction
from server import completions
from server.answers import Answer, Answers
from server.errors import UnknownModelError
from server.identity import Pseudonyms, new_id
from server.schemas import ChatRequest, StreamOptions, parse_chat, to_messages
from server.serving import Serving

CHAT_BODY_BYTES = 256 * 1024
LIVE = "live"

AnyRequest = Request[Any, Any, Any]


@post("/chat/completions", status_code=200, request_max_body_size=CHAT_BODY_BYTES)
async def create_completion(
    request: AnyRequest, answers: Answers, serving: Serving, pseudonyms: Pseudonyms
) -> Response[Any]:
    """Answer a conversation, whole or streamed. The response starts at the first token: its version is known then."""
    chat, ignored = parse_chat(await request.body())
    check_model(chat.model, serving)
    answer = await answers.ask(
        _interaction(chat, pseudonyms), ignore_end=bool(chat.ignore_eos), min_tokens=chat.min_tokens or 0
    )
    answers.abort_when_gone(answer, request.receive)
    await answer.begun()
    _check_pinned(chat.model, answer, serving)
    headers = _headers(request, answer, ignored)
    if chat.stream:
        options = chat.stream_options or StreamOptions()
        frames = completions.stream(answer, options, logprobs=bool(chat.logprobs))
        return Stream(frames, media_type="text/event-stream", headers=headers | {"cache-control": "no-cache"})
    record = await answer.stored()
    body = completions.whole(answer, record.finish_reason, logprobs=bool(chat.logprobs))
    return Response(body, media_type="application/json", headers=headers)


@get("/models")
async def list_models(serving: Serving) -> Response[bytes]:
    """The live alias first: load generators take the first name."""
    body = {"object": "list", "data": [_model(name, serving) for name in _names(serving)]}
    return Response(msgspec.json.encode(body), media_type="application/json")


@get("/models/{name:str}")
async def retrieve_model(name: str, serving: Serving) -> Response[bytes]:
    check_model(name, serving)
    return Response(msgspec.json.encode(_model(name, serving)), media_type="application/json")


def check_model(name: str | None, serving: Serving) -> None:
    """Raises UnknownModelError unless new answers can start under that name."""
    if name is not None and name not in _names(serving):
        listed = ", ".join(_names(serving))
        raise UnknownModelError(f"no model {name[:80]!r} is resident here; there are {listed}")


def _check_pinned(name: str | None, answer: Answer, serving: Serving) -> None:
    """A swap may come between the check and the first token: a version asked for by number is then gone."""
    if name in (None, LIVE, answer.model):
        return
    serving.abort(answer.interaction.interaction_id)
    raise UnknownModelError(f"the policy moved on to {answer.model} before {name} could answer")


def _names(serving: Serving) -> tuple[str, str]:
    return LIVE, f"policy@{serving.policy.policy_version}"


def _model(name: str, serving: Serving) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": 0,
        "owned_by": "attune",
        "max_model_len": serving.max_context,
    }


def _interaction(chat: ChatRequest, pseudonyms: Pseudonyms) -> Interaction:
    metadata = chat.metadata or {}
    if (chat.min_tokens or 0) > chat.sampling.max_tokens:
        message = f"min_tokens is {chat.min_tokens}, more than the {chat.sampling.max_tokens} of max_tokens"
        raise InvalidRequestError(message, param="min_tokens")
    return Interaction(
        interaction_id=new_id("chatcmpl"),
        created_at=time.time(),
        conversation_id=metadata.get("conversation_id", ""),
        rater=pseudonyms.of(chat.safety_identifier or chat.user),
        messages=to_messages(chat.messages),
        sampling=chat.sampling,
        stored=chat.store is not False,
        metadata=metadata,
    )


def _headers(request: AnyRequest, answer: Answer, ignored: tuple[str, ...]) -> dict[str, str]:
    interaction_id = answer.interaction.interaction_id
    headers = {
        "x-interaction-id": interaction_id,
        "x-request-id": request.headers.get("x-request-id", interaction_id)[:128],
        "x-policy-version": str(answer.generation.policy.policy_version),
    }
    if ignored:
        # Names come from the body: whatever could not stand in a header is masked.
        names = [re.sub(r"[^A-Za-z0-9_.-]", "?", name)[:64] for name in ignored[:20]]
        headers["x-ignored-parameters"] = ", ".join(names)
    return headers


ROUTES = (create_completion, list_models, retrieve_model)
