"""The records as the workers see them: the four stores over one connection."""

from __future__ import annotations

from typing import NamedTuple

from rlhf_core.settings import Settings
from rlhf_core.store.connection import connect
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from rlhf_core.store.jobs import JobStore
from rlhf_core.store.policies import PolicyStore

SOCKET_SECONDS = 5.0
"""Nobody waits for a worker, and it reads records by the thousand."""


class Stores(NamedTuple):
    interactions: InteractionStore
    feedback: FeedbackStore
    policies: PolicyStore
    jobs: JobStore


def open_stores(settings: Settings) -> Stores:
    """Connects at the first command, so that this may run before a fork."""
    client = connect(settings.resolved_redis_url, socket_timeout=SOCKET_SECONDS)
    return Stores(InteractionStore(client), FeedbackStore(client), PolicyStore(client), JobStore(client))
