"""The HTTP app on one screen: every collaborator, every route. Imported by nothing but the process that runs it."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

from litestar import Litestar, Router
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.exceptions import NotAuthorizedException, PermissionDeniedException
from litestar.handlers.base import BaseRouteHandler

from rlhf_core.errors import StoreUnavailableError
from rlhf_core.settings import Settings
from rlhf_core.store.interactions import InteractionStore
from server.answers import Answers
from server.comparing import Comparisons
from server.errors import respond
from server.identity import Pseudonyms
from server.metrics import Metrics
from server.policy_source import PolicySource
from server.routes import chat, comparisons, feedback, models, policies, remarks, status, text
from server.routes.remarks import Remarking
from server.routes.replies import Generating
from server.serving import Serving
from server.stores import Stores
from server.swap import SwapWatcher

Collaborator = TypeVar("Collaborator")
ABANDONED_SECONDS = 30.0
"""A desk answer takes seconds: what was streaming before the start and still does is nobody's any more."""
Guard = Callable[[ASGIConnection[Any, Any, Any, Any], BaseRouteHandler], None]


def create_app(
    settings: Settings,
    stores: Stores,
    serving: Serving,
    source: PolicySource,
    pseudonyms: Pseudonyms,
    metrics: Metrics,
) -> Litestar:
    answers = Answers(serving, stores.interactions)
    comparing = Comparisons(serving, answers, stores.interactions, stores.feedback)
    watcher = SwapWatcher(stores.policies, source, serving, metrics)
    v1 = Router(
        "/v1",
        route_handlers=[
            *chat.ROUTES,
            *text.ROUTES,
            *models.ROUTES,
            *feedback.ROUTES,
            *remarks.ROUTES,
            *comparisons.ROUTES,
            *policies.ROUTES,
            *status.ROUTES,
        ],
        guards=[require_key(settings.accepted_keys)],
    )
    moderation = Router("/v1", route_handlers=[*remarks.MODERATION], guards=[require_moderator(settings)])
    return Litestar(
        [v1, moderation, *status.PROBES],
        dependencies={
            "generating": given(Generating(answers, serving, pseudonyms)),
            "comparisons": given(comparing),
            "serving": given(serving),
            "pseudonyms": given(pseudonyms),
            "metrics": given(metrics),
            "interactions": given(stores.interactions),
            "feedback": given(stores.feedback),
            "remarks": given(stores.remarks),
            "remarking": given(Remarking(stores.interactions, stores.remarks, pseudonyms, metrics)),
            "policies": given(stores.policies),
            "status": given(status.StatusReader(settings, stores.policies, stores.feedback, stores.jobs)),
        },
        lifespan=[lambda _: running(serving, answers, watcher, stores.interactions)],
        exception_handlers={Exception: respond},
        openapi_config=None,
        logging_config=None,
        debug=False,
    )


@contextlib.asynccontextmanager
async def running(
    serving: Serving, answers: Answers, watcher: SwapWatcher, interactions: InteractionStore
) -> AsyncIterator[None]:
    """The engine's thread and the swap watcher, for as long as the app runs."""
    serving.start()
    tasks = [asyncio.create_task(watcher.run()), asyncio.create_task(close_abandoned(interactions, time.time()))]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await answers.settle()
        serving.close()


async def close_abandoned(interactions: InteractionStore, started: float) -> None:
    """End what a killed predecessor left streaming. Waits first, for a replica that may still be at it."""
    await asyncio.sleep(ABANDONED_SECONDS)
    with contextlib.suppress(StoreUnavailableError):
        await asyncio.to_thread(interactions.close_abandoned, started, time.time())


def given(collaborator: Collaborator) -> Provide:
    """A dependency that was made before the app."""

    async def provide() -> Collaborator:
        return collaborator

    return Provide(provide)


def require_moderator(settings: Settings) -> Guard:
    """Lets a moderator's request pass; where the API is open to all, every request."""
    if settings.moderators or not settings.accepted_keys:
        return require_key(settings.moderators)

    def guard(_connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        raise PermissionDeniedException("nobody moderates here: ATTUNE_MODERATOR_KEYS says who may")

    return guard


def require_key(keys: frozenset[str]) -> Guard:
    """Lets a request pass that bears one of the keys; every request where there are none."""
    accepted = [key.encode() for key in sorted(keys)]

    def guard(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
        if not accepted:
            return
        scheme, _space, shown = connection.headers.get("authorization", "").partition(" ")
        # All keys are compared, each in constant time: neither the order nor a common prefix shows in the timing.
        matches = [hmac.compare_digest(shown.strip().encode(), key) for key in accepted]
        if scheme.lower() != "bearer" or not any(matches):
            raise NotAuthorizedException(
                "send one of the server's keys as `Authorization: Bearer KEY`", headers={"www-authenticate": "Bearer"}
            )

    return guard
