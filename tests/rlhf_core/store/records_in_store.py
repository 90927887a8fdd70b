"""Small records for the tests of the store and of the workers."""

from __future__ import annotations

import redis

from rlhf_core.records import Comparison, Interaction, InteractionStatus, Job, JobKind, Message
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore


def interaction(
    interaction_id: str,
    *,
    status: InteractionStatus = "done",
    stored: bool = True,
    version: int = 1,
    text: str = "",
    token_ids: tuple[int, ...] = (7, 1),
) -> Interaction:
    return Interaction(
        interaction_id=interaction_id,
        created_at=100.0,
        status=status,
        conversation_id="talk",
        messages=(Message("user", text or interaction_id),),
        prompt_token_ids=(5, 6),
        token_ids=token_ids,
        policy_version=version,
        stored=stored,
    )


def open_interactions(client: redis.Redis, *interactions: Interaction) -> None:
    store = InteractionStore(client)
    for each in interactions:
        store.open(each)


def open_comparison(client: redis.Redis, comparison_id: str = "cmp") -> None:
    """Left answers with token 8, right with token 9; both are done."""
    left = interaction(f"{comparison_id}-left", text=comparison_id, token_ids=(8, 1))
    right = interaction(f"{comparison_id}-right", text=comparison_id, token_ids=(9, 1))
    open_interactions(client, left, right)
    FeedbackStore(client).open_comparison(
        Comparison(
            comparison_id=comparison_id,
            created_at=100.0,
            rater="ann",
            messages=(Message("user", comparison_id),),
            left=left.interaction_id,
            right=right.interaction_id,
            side_seed=3,
        )
    )


def job(job_id: str = "reward-1", kind: JobKind = "reward", batch_ids: tuple[str, ...] = ()) -> Job:
    return Job(job_id=job_id, kind=kind, created_at=100.0, batch_ids=batch_ids)
