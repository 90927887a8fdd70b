"""What the two generating routes share: from the body to interactions, and from answers to a response."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from typing import Any

from litestar import Request, Response
from litestar.response import Stream

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import Interaction, Message
from server import completions
from server.answer import AnswerSet
from server.answers import Answers, Options
from server.errors import UnknownModelError
from server.frames import Form
from server.identity import Pseudonyms, new_id
from server.routes.models import check_answers
from server.schemas import GenerationBody, StreamOptions
from server.serving import Serving

AnyRequest = Request[Any, Any, Any]


@dataclass(frozen=True)
class Generating:
    """What the generating routes work with, as one dependency: several are each resolved in a task of their own, which
    costs a request a tenth of its time in the event loop."""

    answers: Answers
    serving: Serving
    pseudonyms: Pseudonyms


def check_count(count: int, limit: int, what: str, param: str) -> None:
    """Raises InvalidRequestError for more answers than one request may ask for."""
    if count > limit:
        raise InvalidRequestError(f"{what} is {count}, more than the {limit} that one request may have", param=param)


def options_of(body: GenerationBody, top_logprobs: int | None) -> Options:
    return Options(bool(body.ignore_eos), body.min_tokens or 0, top_logprobs or 0)


def interactions_of(
    body: GenerationBody, messages: tuple[Message, ...], pseudonyms: Pseudonyms, prefix: str
) -> list[Interaction]:
    """One for each answer to one prompt."""
    metadata = body.metadata or {}
    rater = pseudonyms.of(body.safety_identifier or body.user)
    return [
        Interaction(
            interaction_id=new_id(prefix),
            created_at=time.time(),
            conversation_id=metadata.get("conversation_id", ""),
            rater=rater,
            messages=messages,
            sampling=body.sampling(choice),
            stored=body.store is not False,
            metadata=metadata,
        )
        for choice in range(body.n or 1)
    ]


async def respond(
    request: AnyRequest,
    body: GenerationBody,
    answers: AnswerSet,
    form: Form,
    ignored: tuple[str, ...],
    *,
    logprobs: bool,
) -> Response[Any]:
    """The answers, whole or streamed. The response starts at the first token: its version is known then."""
    await answers.begun()
    try:
        check_answers(body.model, answers.first.model)
    except UnknownModelError as error:
        answers.fail(error)
        raise
    headers = _headers(request, answers, ignored)
    if body.stream:
        frames = completions.stream(answers, form, body.stream_options or StreamOptions(), logprobs=logprobs)
        return Stream(frames, media_type="text/event-stream", headers=headers | {"cache-control": "no-cache"})
    records = await answers.stored()
    whole = completions.whole(answers, records, form, logprobs=logprobs)
    return Response(whole, media_type="application/json", headers=headers)


def _headers(request: AnyRequest, answers: AnswerSet, ignored: tuple[str, ...]) -> dict[str, str]:
    interaction_id = answers.first.interaction.interaction_id
    headers = {
        "x-interaction-id": interaction_id,
        "x-request-id": request.headers.get("x-request-id", interaction_id)[:128],
        "x-policy-version": str(answers.first.generation.policy.policy_version),
    }
    if ignored:
        # Names come from the body: whatever could not stand in a header is masked.
        names = [re.sub(r"[^A-Za-z0-9_.-]", "?", name)[:64] for name in ignored[:20]]
        headers["x-ignored-parameters"] = ", ".join(names)
    return headers
