"""A person's rating of an answer, and a conversation with its ratings for a page that is loaded again.

A 2xx is sent only after the store has answered.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
from litestar import Request, Response, delete, get, put

from rlhf_core.records import Feedback, Interaction
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from rlhf_core.store.remarks import RemarkStore
from server.identity import Pseudonyms
from server.judgement_bodies import RatingBody, check_reasons
from server.metrics import Metrics
from server.schemas import parse

FEEDBACK_BODY_BYTES = 32 * 1024

AnyRequest = Request[Any, Any, Any]


@put("/interactions/{interaction_id:str}/rating", request_max_body_size=FEEDBACK_BODY_BYTES)
async def put_rating(
    request: AnyRequest,
    interaction_id: str,
    interactions: InteractionStore,
    feedback: FeedbackStore,
    pseudonyms: Pseudonyms,
    metrics: Metrics,
) -> Response[bytes]:
    """Set my rating: 201 when it is my first, 200 when it changes or repeats one."""
    body = parse(await request.body(), RatingBody)
    check_reasons(body.reasons)
    interaction = await asyncio.to_thread(interactions.get, interaction_id)
    recorded = await asyncio.to_thread(
        feedback.rate,
        interaction_id,
        rater_of(request, pseudonyms, interaction.rater),
        body.value,
        reasons=body.reasons,
        comment=body.comment,
        now=time.time(),
    )
    event = recorded.event
    metrics.judged("rating", event.policy_version)
    answer = {
        "event_id": event.event_id,
        "state": event.value,
        "supersedes": event.supersedes,
        "policy_version": event.policy_version,
        "counted": {"training": event.trains, "stats": True},
    }
    return as_json(answer, 201 if recorded.first else 200)


@get("/interactions/{interaction_id:str}/rating")
async def get_rating(
    request: AnyRequest,
    interaction_id: str,
    interactions: InteractionStore,
    feedback: FeedbackStore,
    pseudonyms: Pseudonyms,
) -> Response[bytes]:
    interaction = await asyncio.to_thread(interactions.get, interaction_id)
    rater = rater_of(request, pseudonyms, interaction.rater)
    return as_json(rating_body(await asyncio.to_thread(feedback.rating, interaction_id, rater)))


@delete("/interactions/{interaction_id:str}/rating")
async def delete_rating(
    request: AnyRequest,
    interaction_id: str,
    interactions: InteractionStore,
    feedback: FeedbackStore,
    pseudonyms: Pseudonyms,
) -> None:
    """Take my rating back; may be repeated."""
    interaction = await asyncio.to_thread(interactions.get, interaction_id)
    rater = rater_of(request, pseudonyms, interaction.rater)
    await asyncio.to_thread(feedback.withdraw, interaction_id, rater, now=time.time())


@get("/conversations/{conversation_id:str}")
async def get_conversation(
    request: AnyRequest,
    conversation_id: str,
    interactions: InteractionStore,
    feedback: FeedbackStore,
    remarks: RemarkStore,
    pseudonyms: Pseudonyms,
) -> Response[bytes]:
    """Its interactions, newest last, each with my rating and my report. Comparisons are left out: they are shown
    blind."""

    def shown(found: Interaction) -> dict[str, Any]:
        rater = rater_of(request, pseudonyms, found.rater)
        report = remarks.find("report", found.interaction_id, rater)
        return _shown(found, feedback.rating(found.interaction_id, rater), report)

    def read() -> list[dict[str, Any]]:
        return [shown(each) for each in interactions.conversation(conversation_id) if each.comparison_id is None]

    return as_json({"conversation_id": conversation_id, "interactions": await asyncio.to_thread(read)})


def rater_of(request: AnyRequest, pseudonyms: Pseudonyms, otherwise: str) -> str:
    """Whose judgement this is: the person in `x-rater`, else the one who asked."""
    name = request.headers.get("x-rater")
    return pseudonyms.of(name) if name else otherwise


def rating_body(event: Feedback | None) -> dict[str, Any]:
    if event is None:
        return {"state": None, "reasons": [], "comment": "", "event_id": None}
    return {
        "state": event.value,
        "reasons": event.reasons,
        "comment": event.comment,
        "event_id": event.event_id,
    }


def as_json(body: dict[str, Any], status: int = 200) -> Response[bytes]:
    return Response(msgspec.json.encode(body), status_code=status, media_type="application/json")


def _shown(interaction: Interaction, rating: Feedback | None, report: Feedback | None) -> dict[str, Any]:
    return {
        "interaction_id": interaction.interaction_id,
        "messages": interaction.messages,
        "response": interaction.response,
        "status": interaction.status,
        "policy_version": interaction.policy_version,
        "created_at": interaction.created_at,
        "rating": rating_body(rating),
        "report": {"category": report.reasons[0], "note": report.comment} if report else None,
    }


ROUTES = (put_rating, get_rating, delete_rating, get_conversation)
