"""Reports and reviews of answers, in the feedback log: what somebody reported, and what a reviewer found.

Of each kind, answer and person one is current, none is edited, and a batch takes them with the judgements; but they are
no verdicts, and start no training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import redis

from rlhf_core.records import Feedback, RemarkKind
from rlhf_core.store import keys, remark_scripts
from rlhf_core.store.connection import text
from rlhf_core.store.feedback import Recorded, arguments_of, new_event, recorded, standing


class Reported(NamedTuple):
    """An answer with standing reports."""

    interaction_id: str
    reports: list[Feedback]
    """Newest first."""
    reviews: int
    """Standing ones."""


class RemarkStore:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._remark = client.register_script(remark_scripts.REMARK)
        self._unremark = client.register_script(remark_scripts.UNREMARK)

    def make(
        self,
        kind: RemarkKind,
        interaction_id: str,
        rater: str,
        *,
        reasons: Sequence[str],
        comment: str = "",
        now: float,
    ) -> Recorded:
        """Record a report or a review, in place of this person's last one.

        Raises NotFoundError for an unknown interaction, ConflictError while it streams.
        """
        event = new_event(kind, interaction_id, rater, "made", reasons, comment, now)
        reply = self._remark(_places(event), [*arguments_of(event), now, kind, interaction_id])
        return recorded(reply, f"interaction {interaction_id}")

    def withdraw(self, kind: RemarkKind, interaction_id: str, rater: str, *, now: float) -> Feedback | None:
        """Take it back. None when there was none."""
        event = new_event(kind, interaction_id, rater, None, (), "", now)
        reply = self._unremark(_places(event), [*arguments_of(event), now, kind, interaction_id])
        return None if reply[0] == b"missing" else recorded(reply, interaction_id).event

    def find(self, kind: RemarkKind, interaction_id: str, rater: str) -> Feedback | None:
        return standing(self._client.hget(keys.CURRENT, keys.judgement(kind, interaction_id, rater)))

    def reported(self, limit: int, *, waiting: bool = False) -> list[Reported]:
        """The answers that were reported last, newest first; with `waiting`, those that nobody reviewed since."""
        if limit <= 0:
            return []
        answers: Any = self._client.zrevrange(keys.WAITING if waiting else keys.REPORTED, 0, limit - 1)
        return [self._reported(text(interaction_id)) for interaction_id in answers]

    def _reported(self, interaction_id: str) -> Reported:
        names: Any = self._client.zrevrange(keys.reports(interaction_id), 0, -1)
        records = self._client.hmget(keys.CURRENT, names) if names else []
        reports = [event for record in records if (event := standing(record)) is not None]
        reviews = self._client.hget(keys.interaction_facts(interaction_id), "review")
        return Reported(interaction_id, reports, int(text(reviews or b"0")))


def _places(event: Feedback) -> list[str]:
    facts, reports = keys.interaction_facts(event.target), keys.reports(event.target)
    return [keys.event(event.event_id), facts, keys.FEEDBACK, keys.CURRENT, keys.REPORTED, keys.WAITING, reports]
