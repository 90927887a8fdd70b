from __future__ import annotations

import msgspec
import pytest
import redis

from rlhf_core.errors import NotFoundError
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from tests.rlhf_core.store.records_in_store import interaction


def test_an_interaction_is_read_back_as_it_was_completed(redis_client: redis.Redis) -> None:
    store = InteractionStore(redis_client)
    opened = interaction("a", status="streaming")
    store.open(opened)
    done = msgspec.structs.replace(opened, status="done", logprobs=(-0.1, -2.5), completed_at=101.25)
    store.complete(done)
    assert store.get("a") == done


def test_completing_what_was_never_opened_is_refused_by_name(redis_client: redis.Redis) -> None:
    with pytest.raises(NotFoundError, match="no interaction ghost"):
        InteractionStore(redis_client).complete(interaction("ghost"))


def test_opening_twice_keeps_the_first_record(redis_client: redis.Redis) -> None:
    store = InteractionStore(redis_client)
    store.open(interaction("a"))
    store.complete(interaction("a", status="aborted"))
    store.open(interaction("a"))
    assert store.get("a").status == "aborted"
    assert len(store.conversation("talk")) == 1


def test_a_conversation_is_read_oldest_first_and_recent_newest_first(redis_client: redis.Redis) -> None:
    store = InteractionStore(redis_client)
    for at in (3, 1, 2):
        store.open(msgspec.structs.replace(interaction(f"i{at}"), created_at=float(at)))
    assert [each.interaction_id for each in store.conversation("talk")] == ["i1", "i2", "i3"]
    assert [each.interaction_id for each in store.recent(2)] == ["i3", "i2"]
    assert store.recent(0) == []
    assert store.conversation("unknown") == []


def test_what_a_killed_server_was_saying_is_ended_and_what_ended_well_is_left(redis_client: redis.Redis) -> None:
    store = InteractionStore(redis_client)
    for name, status, at in (("dead", "streaming", 10.0), ("young", "streaming", 95.0), ("done", "done", 10.0)):
        store.open(msgspec.structs.replace(interaction(name, status=status), created_at=at))  # type: ignore[arg-type]
    assert store.close_abandoned(before=70.0, now=100.0) == 1
    assert (store.get("dead").status, store.get("dead").completed_at) == ("error", 100.0)
    assert (store.get("young").status, store.get("done").status) == ("streaming", "done")
    FeedbackStore(redis_client).withdraw("dead", "ann", now=101.0)
    # A rating is answered now: it is no longer refused as still streaming.
    assert FeedbackStore(redis_client).rate("dead", "ann", "down", now=102.0).first
