"""Reports of answers, and what reviewers find in them: kept for whoever moderates, and learned from by axis.

A 2xx is sent only after the store has answered.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from litestar import Response, delete, get, post, put

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import REVIEWED, Feedback, Interaction, RemarkKind
from rlhf_core.store.interactions import InteractionStore
from rlhf_core.store.remarks import RemarkStore, Reported
from server.identity import Pseudonyms
from server.judgement_bodies import ReportBody, ReviewBody
from server.metrics import Metrics
from server.routes.feedback import FEEDBACK_BODY_BYTES, AnyRequest, as_json, rater_of
from server.schemas import parse

MOST_REPORTED = 200


@dataclass(frozen=True)
class Remarking:
    """Who says what of which answer: the collaborators of these routes."""

    interactions: InteractionStore
    remarks: RemarkStore
    pseudonyms: Pseudonyms
    metrics: Metrics

    async def make(
        self, request: AnyRequest, kind: RemarkKind, interaction_id: str, reasons: tuple[str, ...], note: str
    ) -> Feedback:
        """Raises NotFoundError for an unknown answer, ConflictError while it streams."""

        def record() -> Feedback:
            rater = self._rater(request, kind, interaction_id)
            made = self.remarks.make(kind, interaction_id, rater, reasons=reasons, comment=note, now=time.time())
            return made.event

        event = await asyncio.to_thread(record)
        self.metrics.judged(kind, event.policy_version)
        return event

    async def mine(self, request: AnyRequest, kind: RemarkKind, interaction_id: str) -> Feedback | None:
        def find() -> Feedback | None:
            return self.remarks.find(kind, interaction_id, self._rater(request, kind, interaction_id))

        return await asyncio.to_thread(find)

    async def withdraw(self, request: AnyRequest, kind: RemarkKind, interaction_id: str) -> None:
        def take_back() -> None:
            rater = self._rater(request, kind, interaction_id)
            self.remarks.withdraw(kind, interaction_id, rater, now=time.time())

        await asyncio.to_thread(take_back)

    def reported(self, limit: int, *, waiting: bool) -> list[tuple[Reported, Interaction]]:
        """Answers with standing reports, the last reported first."""
        found = self.remarks.reported(limit, waiting=waiting)
        answers = self.interactions.many(each.interaction_id for each in found)
        return [(each, answers[each.interaction_id]) for each in found if each.interaction_id in answers]

    def _rater(self, request: AnyRequest, kind: RemarkKind, interaction_id: str) -> str:
        """Raises InvalidRequestError for a review by nobody: who asked for an answer does not review it."""
        interaction = self.interactions.get(interaction_id)
        if kind == "review" and not request.headers.get("x-rater"):
            raise InvalidRequestError("a review needs its reviewer's name in the header x-rater", param="x-rater")
        return rater_of(request, self.pseudonyms, interaction.rater)


@post("/interactions/{interaction_id:str}/reports", request_max_body_size=FEEDBACK_BODY_BYTES)
async def post_report(request: AnyRequest, interaction_id: str, remarking: Remarking) -> Response[bytes]:
    """Report an answer. Another report of mine replaces it."""
    body = parse(await request.body(), ReportBody)
    event = await remarking.make(request, "report", interaction_id, (body.category,), body.note)
    answer = as_json(_report(event), 202)
    answer.headers["location"] = f"/v1/interactions/{interaction_id}/reports"
    return answer


@get("/interactions/{interaction_id:str}/reports")
async def get_report(request: AnyRequest, interaction_id: str, remarking: Remarking) -> Response[bytes]:
    """My report of an answer, if there is one."""
    found = await remarking.mine(request, "report", interaction_id)
    return as_json({"reports": [_report(found)] if found else []})


@delete("/interactions/{interaction_id:str}/reports")
async def delete_report(request: AnyRequest, interaction_id: str, remarking: Remarking) -> None:
    """Take my report back; may be repeated."""
    await remarking.withdraw(request, "report", interaction_id)


@put("/interactions/{interaction_id:str}/review", request_max_body_size=FEEDBACK_BODY_BYTES)
async def put_review(request: AnyRequest, interaction_id: str, remarking: Remarking) -> Response[bytes]:
    """Say what I found in an answer, as its reviewer. Another review of mine replaces it."""
    body = parse(await request.body(), ReviewBody)
    return as_json(_review(await remarking.make(request, "review", interaction_id, body.reasons(), body.note)))


@get("/interactions/{interaction_id:str}/review")
async def get_review(request: AnyRequest, interaction_id: str, remarking: Remarking) -> Response[bytes]:
    """My review of an answer; nothing is said of any aspect where there is none."""
    return as_json(_review(await remarking.mine(request, "review", interaction_id)))


@delete("/interactions/{interaction_id:str}/review")
async def delete_review(request: AnyRequest, interaction_id: str, remarking: Remarking) -> None:
    """Take my review back; may be repeated."""
    await remarking.withdraw(request, "review", interaction_id)


@get("/reports")
async def list_reports(remarking: Remarking, limit: int = 50, waiting: bool = False) -> Response[bytes]:
    """The answers that were reported last, for whoever moderates; with `waiting`, those that nobody reviewed since."""
    found = await asyncio.to_thread(remarking.reported, min(limit, MOST_REPORTED), waiting=waiting)
    return as_json({"reported": [_listed(*each) for each in found]})


def _report(event: Feedback) -> dict[str, Any]:
    return {
        "event_id": event.event_id,
        "interaction_id": event.target,
        "category": event.reasons[0],
        "note": event.comment,
        "created_at": event.created_at,
        "policy_version": event.policy_version,
        "supersedes": event.supersedes,
    }


def _review(event: Feedback | None) -> dict[str, Any]:
    said = dict(reason.split(":") for reason in event.reasons) if event else {}
    return {
        "event_id": event.event_id if event else None,
        **{name: said.get(name) for name in REVIEWED},
        "note": event.comment if event else "",
    }


def _listed(reported: Reported, interaction: Interaction) -> dict[str, Any]:
    return {
        "interaction_id": interaction.interaction_id,
        "policy_version": interaction.policy_version,
        "messages": interaction.messages,
        "response": interaction.response,
        "reports": [_report(each) for each in reported.reports],
        "reviews": reported.reviews,
    }


# Whoever asks sees other people's conversations.
MODERATION = (put_review, get_review, delete_review, list_reports)
ROUTES = (post_report, get_report, delete_report)
