"""The records, by noun, over one connection."""

from __future__ import annotations

from dataclasses import dataclass

from rlhf_core.store.connection import connect, wait_until_ready
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from rlhf_core.store.jobs import JobStore
from rlhf_core.store.policies import PolicyStore
from rlhf_core.store.remarks import RemarkStore


@dataclass(frozen=True)
class Stores:
    interactions: InteractionStore
    feedback: FeedbackStore
    remarks: RemarkStore
    policies: PolicyStore
    jobs: JobStore


def open_stores(url: str, seconds: float) -> Stores:
    """Connect, and wait for an answer. Raises StoreUnavailableError after `seconds`."""
    client = connect(url)
    wait_until_ready(client, seconds)
    return Stores(
        InteractionStore(client), FeedbackStore(client), RemarkStore(client), PolicyStore(client), JobStore(client)
    )
