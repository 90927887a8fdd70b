"""Two answers side by side, blind until the first choice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from litestar import Request, Response, get, post, put
from litestar.response import Stream

from rlhf_core.records import Comparison
from rlhf_core.store.feedback import FeedbackStore
from server.comparing import Comparisons, Sides, encode
from server.identity import Pseudonyms
from server.judgement_bodies import ChoiceBody, check_reasons
from server.metrics import Metrics
from server.routes.chat import CHAT_BODY_BYTES
from server.routes.feedback import FEEDBACK_BODY_BYTES, as_json, rater_of
from server.schemas import DEFAULT_MAX_TOKENS, ComparisonBody, parse, to_messages

AnyRequest = Request[Any, Any, Any]


@post("/comparisons", request_max_body_size=CHAT_BODY_BYTES)
async def create_comparison(request: AnyRequest, comparisons: Comparisons, pseudonyms: Pseudonyms) -> Response[bytes]:
    """Start two answers to one prompt. No names, no versions: those come with the choice."""
    body = parse(await request.body(), ComparisonBody)
    rater = rater_of(request, pseudonyms, pseudonyms.of(body.user))
    max_tokens = body.max_tokens or DEFAULT_MAX_TOKENS
    comparison = await comparisons.start(to_messages(body.messages), rater, max_tokens, body.metadata or {})
    return as_json({"comparison_id": comparison.comparison_id, "slots": ["left", "right"]}, 201)


@get("/comparisons/{comparison_id:str}/events")
async def comparison_events(comparison_id: str, comparisons: Comparisons, feedback: FeedbackStore) -> Stream:
    """Both answers as they come, from the start however late one connects."""
    await asyncio.to_thread(feedback.comparison, comparison_id)

    async def frames() -> AsyncIterator[bytes]:
        async for event in comparisons.events(comparison_id):
            yield encode(event)

    return Stream(frames(), media_type="text/event-stream", headers={"cache-control": "no-cache"})


@get("/comparisons/{comparison_id:str}")
async def get_comparison(
    request: AnyRequest,
    comparison_id: str,
    comparisons: Comparisons,
    feedback: FeedbackStore,
    pseudonyms: Pseudonyms,
) -> Response[bytes]:
    def read() -> dict[str, Any]:
        comparison, sides = feedback.comparison(comparison_id), comparisons.sides(comparison_id)
        chosen = feedback.choice(comparison_id, rater_of(request, pseudonyms, comparison.rater))
        return {
            "comparison_id": comparison_id,
            "messages": comparison.messages,
            "texts": {slot: side.response for slot, side in sides.items()},
            "status": {slot: side.status for slot, side in sides.items()},
            "choice": chosen.value if chosen else None,
            "reasons": chosen.reasons if chosen else [],
            "comment": chosen.comment if chosen else "",
            "revealed": _revealed(sides) if chosen else None,
        }

    return as_json(await asyncio.to_thread(read))


@put("/comparisons/{comparison_id:str}/choice", request_max_body_size=FEEDBACK_BODY_BYTES)
async def put_choice(
    request: AnyRequest,
    comparison_id: str,
    comparisons: Comparisons,
    feedback: FeedbackStore,
    pseudonyms: Pseudonyms,
    metrics: Metrics,
) -> Response[bytes]:
    """Set my choice and learn which policy was where: 201 for the first, then 200; 409 unless both are complete."""
    body = parse(await request.body(), ChoiceBody)
    check_reasons(body.reasons)
    comparison: Comparison = await asyncio.to_thread(feedback.comparison, comparison_id)
    sides = await asyncio.to_thread(comparisons.check_complete, comparison_id)
    recorded = await asyncio.to_thread(
        feedback.choose,
        comparison_id,
        rater_of(request, pseudonyms, comparison.rater),
        body.choice,
        reasons=body.reasons,
        comment=body.comment,
        now=time.time(),
    )
    metrics.judged("comparison", *(side.policy_version for side in sides.values()))
    event = recorded.event
    answer = {
        "event_id": event.event_id,
        "choice": event.value,
        "supersedes": event.supersedes,
        "revealed": _revealed(sides),
        "counted": {"training": event.trains, "stats": event.supersedes is None},
    }
    return as_json(answer, 201 if recorded.first else 200)


def _revealed(sides: Sides) -> dict[str, Any]:
    return {
        slot: {"interaction_id": side.interaction_id, "policy_version": side.policy_version}
        for slot, side in sides.items()
    }


ROUTES = (create_comparison, comparison_events, get_comparison, put_choice)
