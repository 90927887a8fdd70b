"""Interactions: written before the first token, completed before the last byte, read by everything after."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import redis

from rlhf_core.errors import NotFoundError
from rlhf_core.records import Interaction
from rlhf_core.store import keys, scripts
from rlhf_core.store.connection import text

_READ_AT_ONCE = 100


class InteractionStore:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client
        self._open = client.register_script(scripts.INTERACTION_OPEN)
        self._close = client.register_script(scripts.INTERACTION_CLOSE)
        self._complete = client.register_script(scripts.INTERACTION_COMPLETE)

    def open(self, interaction: Interaction) -> None:
        """Store a new interaction. Opening the same id again changes nothing."""
        places = [*_places(interaction.interaction_id), keys.INTERACTIONS]
        if interaction.conversation_id:
            places.append(keys.conversation(interaction.conversation_id))
        record, *facts = _facts(interaction)
        self._open(places, [record, interaction.interaction_id, interaction.created_at, *facts])

    def complete(self, interaction: Interaction) -> None:
        """Replace the record with its final form. Raises NotFoundError when it was never opened."""
        (code, *_) = self._complete(_places(interaction.interaction_id), _facts(interaction))
        if code == b"missing":
            raise NotFoundError(f"no interaction {interaction.interaction_id}")

    def get(self, interaction_id: str) -> Interaction:
        record = self._client.get(keys.interaction(interaction_id))
        if record is None:
            raise NotFoundError(f"no interaction {interaction_id}")
        return msgspec.json.decode(record, type=Interaction)

    def conversation(self, conversation_id: str) -> list[Interaction]:
        """Every interaction of a conversation, oldest first; empty for an unknown one."""
        return self._read(self._client.zrange(keys.conversation(conversation_id), 0, -1))

    def recent(self, limit: int) -> list[Interaction]:
        """The newest interactions, newest first, whatever their status."""
        return self._read(self._client.zrevrange(keys.INTERACTIONS, 0, limit - 1)) if limit > 0 else []

    def many(self, interaction_ids: Iterable[str]) -> dict[str, Interaction]:
        """Those of the ids that exist, by id."""
        return {found.interaction_id: found for found in self._read(interaction_ids)}

    def close_abandoned(self, before: float, now: float, limit: int = 1000) -> int:
        """End, as errors, those of the newest `limit` interactions that still stream and were opened before `before`.

        For a server that starts: what its predecessor was saying when it was killed will never end by itself. Should
        another replica still be at it, its completion replaces this end. Returns how many there were.
        """
        lost = [each for each in self.recent(limit) if each.status == "streaming" and each.created_at < before]
        for each in lost:
            ended = msgspec.structs.replace(each, status="error", completed_at=now)
            self._close(_places(each.interaction_id), _facts(ended))
        return len(lost)

    def _read(self, interaction_ids: Iterable[object]) -> list[Interaction]:
        found: list[Interaction] = []
        for some in _chunks([keys.interaction(text(interaction_id)) for interaction_id in interaction_ids]):
            records = self._client.mget(some)
            found += [msgspec.json.decode(record, type=Interaction) for record in records if record is not None]
        return found


def _places(interaction_id: str) -> list[str]:
    return [keys.interaction(interaction_id), keys.interaction_facts(interaction_id)]


def _facts(interaction: Interaction) -> list[bytes | str | int]:
    record = msgspec.json.encode(interaction)
    return [record, interaction.status, interaction.policy_version, int(interaction.stored)]


def _chunks(names: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(names), _READ_AT_ONCE):
        yield names[start : start + _READ_AT_ONCE]
