"""Feedback: an append-only log of judgements, what is current, what waits for a batch, and approval counts.

Each write is one script and carries its own event id, so that a write which redis-py sends twice counts once.
The log's order is the order of learning: a batch is the span of entries between two positions of the cursor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import redis

from rlhf_core.errors import ConflictError, NotFoundError
from rlhf_core.records import Approval, ChoiceValue, Comparison, Feedback, PreferenceBatch, RatingValue
from rlhf_core.store import keys, scripts
from rlhf_core.store.connection import text

START = "0-0"
"""The cursor before the first batch."""


class Recorded(NamedTuple):
    """What became of a judgement."""

    event: Feedback
    """The current event: the new one, or the earlier one that says the same."""
    first: bool
    """No judgement stood before it."""
    changed: bool
    """False when it repeats what already stands: nothing was written."""


class FeedbackStore:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._rate = client.register_script(scripts.RATE)
        self._withdraw = client.register_script(scripts.WITHDRAW)
        self._choose = client.register_script(scripts.CHOOSE)
        self._commit = client.register_script(scripts.COMMIT_BATCH)

    def rate(
        self,
        interaction_id: str,
        rater: str,
        value: RatingValue,
        *,
        reasons: Sequence[str] = (),
        comment: str = "",
        now: float,
    ) -> Recorded:
        """Record a thumb. Raises NotFoundError for an unknown interaction, ConflictError while it streams."""
        event = new_event("rating", interaction_id, rater, value, reasons, comment, now)
        places = [keys.event(event.event_id), keys.interaction_facts(interaction_id), keys.FEEDBACK]
        reply = self._rate([*places, keys.CURRENT, keys.UNREAD, keys.APPROVAL], arguments_of(event))
        return recorded(reply, f"interaction {interaction_id}")

    def withdraw(self, interaction_id: str, rater: str, *, now: float) -> Feedback | None:
        """Take a thumb back. None when there was none."""
        event = new_event("rating", interaction_id, rater, None, (), "", now)
        places = [keys.event(event.event_id), keys.FEEDBACK, keys.CURRENT, keys.UNREAD, keys.APPROVAL]
        reply = self._withdraw(places, arguments_of(event))
        return None if reply[0] == b"missing" else recorded(reply, interaction_id).event

    def rating(self, interaction_id: str, rater: str) -> Feedback | None:
        return self._judgement(keys.judgement("rating", interaction_id, rater))

    def open_comparison(self, comparison: Comparison) -> None:
        """Store a new comparison. Opening the same id again changes nothing."""
        record = msgspec.json.encode(comparison)
        self._client.hsetnx(keys.comparison(comparison.comparison_id), "record", record)

    def comparison(self, comparison_id: str) -> Comparison:
        record, revealed_at = self._client.hmget(keys.comparison(comparison_id), ["record", "revealed_at"])
        if record is None:
            raise NotFoundError(f"no comparison {comparison_id}")
        comparison = msgspec.json.decode(record, type=Comparison)
        if revealed_at is None:
            return comparison
        return msgspec.structs.replace(comparison, revealed_at=float(revealed_at))

    def choose(
        self,
        comparison_id: str,
        rater: str,
        choice: ChoiceValue,
        *,
        reasons: Sequence[str] = (),
        comment: str = "",
        now: float,
    ) -> Recorded:
        """Record a choice; the first reveals the sides. Skips and changes after the reveal do not train.

        Raises NotFoundError for an unknown comparison, ConflictError while either answer is streaming.
        """
        sides = self.comparison(comparison_id)
        event = new_event("comparison", comparison_id, rater, choice, reasons, comment, now)
        facts = [keys.interaction_facts(sides.left), keys.interaction_facts(sides.right)]
        places = [keys.event(event.event_id), keys.comparison(comparison_id), *facts]
        reply = self._choose([*places, keys.FEEDBACK, keys.CURRENT, keys.UNREAD], [*arguments_of(event), now])
        return recorded(reply, f"comparison {comparison_id}")

    def choice(self, comparison_id: str, rater: str) -> Feedback | None:
        return self._judgement(keys.judgement("comparison", comparison_id, rater))

    def approval(self) -> list[Approval]:
        """Thumbs per policy version, ascending. Reads counters: the cost is in versions, not in feedback."""
        counts: dict[int, dict[str, int]] = {}
        for name, count in self._client.hgetall(keys.APPROVAL).items():
            version, _, value = text(name).partition(":")
            counts.setdefault(int(version), {})[value] = int(count)
        return [
            Approval(policy_version=version, up=counts[version].get("up", 0), down=counts[version].get("down", 0))
            for version in sorted(counts)
        ]

    def unread(self) -> int:
        """Judgements to learn from that are in no batch yet: a person who changes their mind counts once."""
        return int(self._client.hlen(keys.UNREAD))

    def since_policy(self) -> int:
        """Judgements to learn from that no policy training has used, whether in a batch or not."""
        return self.unread() + int(self._client.get(keys.SINCE_POLICY) or 0)

    def take_for_policy(self) -> None:
        """A policy training starts with what the batches hold now."""
        self._client.set(keys.SINCE_POLICY, 0)

    def read_after(self, cursor: str, limit: int) -> list[tuple[str, Feedback]]:
        """Log entries after a position, oldest first, each with its own position."""
        entries: Any = self._client.xrange(keys.FEEDBACK, min=f"({cursor}", count=limit)
        return [(text(entry_id), msgspec.json.decode(fields[b"event"], type=Feedback)) for entry_id, fields in entries]

    def cursor(self) -> str:
        """Position of the last entry that is in a batch."""
        position = self._client.get(keys.CURSOR)
        return START if position is None else text(position)

    def last_feedback_at(self) -> float | None:
        """Time of the newest judgement that is in a batch; None before the first batch."""
        position = self.cursor()
        entries: Any = self._client.xrange(keys.FEEDBACK, min=position, max=position)
        return msgspec.json.decode(entries[0][1][b"event"], type=Feedback).created_at if entries else None

    def commit_batch(self, batch: PreferenceBatch) -> bool:
        """Move the cursor over a batch that is safely on disk. False when another took those entries."""
        judgements = [name for pair in batch.current_event_ids.items() for name in pair]
        places = [keys.CURSOR, keys.BATCHES, keys.UNREAD, keys.SINCE_POLICY]
        reply = self._commit(places, [batch.batch_id, batch.first_entry, batch.last_entry, *judgements])
        return bool(reply[0] == b"ok")

    def batches(self) -> list[str]:
        return [text(batch_id) for batch_id in self._client.lrange(keys.BATCHES, 0, -1)]

    def current_event_id(self, kind: str, target: str, rater: str) -> str:
        """Id of the event that stands for a judgement; empty when there is none or it was withdrawn."""
        event = self._judgement(keys.judgement(kind, target, rater))
        return event.event_id if event else ""

    def current_event_ids(self, judgement_keys: Sequence[str]) -> dict[str, str]:
        """`current_event_id` of many keys `kind:target:rater` at once."""
        if not judgement_keys:
            return {}
        records = self._client.hmget(keys.CURRENT, list(judgement_keys))
        events = [standing(record) for record in records]
        return {key: event.event_id if event else "" for key, event in zip(judgement_keys, events, strict=True)}

    def _judgement(self, key: str) -> Feedback | None:
        return standing(self._client.hget(keys.CURRENT, key))


def standing(record: bytes | str | None) -> Feedback | None:
    """A judgement that was read; None for none, and for one that was withdrawn."""
    if record is None:
        return None
    event = msgspec.json.decode(record, type=Feedback)
    return None if event.value is None else event


def new_event(
    kind: Any, target: str, rater: str, value: Any, reasons: Sequence[str], comment: str, now: float
) -> Feedback:
    """What somebody says now. The script that writes it adds what it knows better."""
    return Feedback(
        event_id=f"fb-{uuid4().hex}",
        kind=kind,
        target=target,
        rater=rater,
        created_at=now,
        value=value,
        reasons=tuple(reasons),
        comment=comment,
    )


def arguments_of(event: Feedback) -> list[str | bytes]:
    """Judgement key, JSON without the fields that the script knows better, event id."""
    fields = msgspec.to_builtins(event)
    for known_to_the_script in ("supersedes", "policy_version", "trains"):
        del fields[known_to_the_script]
    key = keys.judgement(event.kind, event.target, event.rater)
    return [key, msgspec.json.encode(fields), event.event_id]


def recorded(reply: list[Any], target: str) -> Recorded:
    """What a script answered about a judgement of `target`. Raises NotFoundError and ConflictError."""
    if reply[0] == b"missing":
        raise NotFoundError(f"no {target}")
    if reply[0] == b"streaming":
        raise ConflictError(f"{target} is still being answered; judge it when it is complete")
    _, first, changed, event = reply
    return Recorded(msgspec.json.decode(event, type=Feedback), bool(first), bool(changed))
