"""Reports and reviews of answers, in the feedback log: what somebody reported, and what a reviewer found.

They are judgements like any other: one of each kind, answer and person is current, none is edited, and a batch takes
them with the rest.
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
    """One standing report."""

    report: Feedback
    reviews: int
    """Standing reviews of the answer."""


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
        places = [keys.event(event.event_id), keys.interaction_facts(interaction_id), keys.FEEDBACK]
        places += [keys.CURRENT, keys.UNREAD, keys.remarks(kind)]
        reply = self._remark(places, [*arguments_of(event), now, kind])
        return recorded(reply, f"interaction {interaction_id}")

    def withdraw(self, kind: RemarkKind, interaction_id: str, rater: str, *, now: float) -> Feedback | None:
        """Take it back. None when there was none."""
        event = new_event(kind, interaction_id, rater, None, (), "", now)
        places = [keys.event(event.event_id), keys.interaction_facts(interaction_id), keys.FEEDBACK]
        places += [keys.CURRENT, keys.UNREAD, keys.remarks(kind)]
        reply = self._unremark(places, [*arguments_of(event), now, kind])
        return None if reply[0] == b"missing" else recorded(reply, interaction_id).event

    def find(self, kind: RemarkKind, interaction_id: str, rater: str) -> Feedback | None:
        return standing(self._client.hget(keys.CURRENT, keys.judgement(kind, interaction_id, rater)))

    def reports(self, limit: int) -> list[Reported]:
        """The newest standing reports, newest first."""
        if limit <= 0:
            return []
        names: Any = self._client.zrevrange(keys.remarks("report"), 0, limit - 1)
        records = self._client.hmget(keys.CURRENT, names) if names else []
        found = [event for record in records if (event := standing(record)) is not None]
        pipeline = self._client.pipeline(transaction=False)
        for event in found:
            pipeline.hget(keys.interaction_facts(event.target), "review")
        reviews = [int(text(count or b"0")) for count in pipeline.execute()]
        return [Reported(event, count) for event, count in zip(found, reviews, strict=True)]
