"""OpenAI's text completions: the model goes on from a prompt as it stands, without a chat template.

An interaction of it holds the prompt's text as one message of a user.
"""

from __future__ import annotations

from typing import Any

from litestar import Response, post

from rlhf_core.records import Message
from server.frames import TEXT
from server.prompts import given_prompts, read_prompts
from server.routes.models import check_model
from server.routes.replies import AnyRequest, Generating, check_count, interactions_of, options_of, respond
from server.schemas import parse_text

TEXT_BODY_BYTES = 256 * 1024
MAX_ANSWERS = 32
"""Prompts times `n`: what one request may take of the queue."""


@post("/completions", status_code=200, request_max_body_size=TEXT_BODY_BYTES)
async def create_text_completion(request: AnyRequest, generating: Generating) -> Response[Any]:
    """Complete each prompt `n` times over."""
    answers, serving, pseudonyms = generating.answers, generating.serving, generating.pseudonyms
    body, ignored = parse_text(await request.body())
    check_model(body.model, serving)
    n = body.n or 1
    check_count(n, serving.max_running, "n", "n")
    given = given_prompts(body.prompt)
    count = n * len(given)
    check_count(count, min(MAX_ANSWERS, serving.max_running), "the number of prompts times n", "prompt")
    with serving.admission(count):
        prompts = await read_prompts(serving, given)
        interactions = [
            interaction
            for prompt in prompts
            for interaction in interactions_of(body, (Message("user", prompt.text),), pseudonyms, "cmpl")
        ]
        token_ids = [prompt.token_ids for prompt in prompts for _ in range(n)]
        started = await answers.ask(interactions, token_ids, n=n, options=options_of(body, body.logprobs))
    answers.abort_when_gone(started, request.receive, request.scope)
    return await respond(request, body, started, TEXT, ignored, logprobs=body.logprobs is not None)


ROUTES = (create_text_completion,)
