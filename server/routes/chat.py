"""OpenAI's chat completions. A conversation in, tokens out, interactions stored.

Knows the wire and the order of acts; nothing of tensors.
"""

from __future__ import annotations

from typing import Any

from litestar import Response, post

from server.frames import CHAT
from server.routes.models import check_model
from server.routes.replies import AnyRequest, Generating, check_count, interactions_of, options_of, respond
from server.schemas import parse_chat, to_messages

CHAT_BODY_BYTES = 256 * 1024


@post("/chat/completions", status_code=200, request_max_body_size=CHAT_BODY_BYTES)
async def create_completion(request: AnyRequest, generating: Generating) -> Response[Any]:
    """Answer a conversation `n` times over."""
    answers, serving = generating.answers, generating.serving
    body, ignored = parse_chat(await request.body())
    check_model(body.model, serving)
    messages = to_messages(body.messages)
    interactions = interactions_of(body, messages, generating.pseudonyms, "chatcmpl")
    check_count(len(interactions), serving.max_running, "n", "n")
    with serving.admission(len(interactions)):
        prompt = await serving.tokenise(messages)
        started = await answers.ask(
            interactions,
            [prompt] * len(interactions),
            n=len(interactions),
            options=options_of(body, body.top_logprobs),
        )
    answers.abort_when_gone(started, request.receive, request.scope)
    return await respond(request, body, started, CHAT, ignored, logprobs=bool(body.logprobs))


ROUTES = (create_completion,)
