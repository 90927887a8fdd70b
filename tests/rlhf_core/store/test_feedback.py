from __future__ import annotations

import pytest
import redis

from rlhf_core.errors import ConflictError, NotFoundError
from rlhf_core.records import Approval, ChoiceValue, InteractionStatus, PreferenceBatch
from rlhf_core.store import keys
from rlhf_core.store.feedback import START, FeedbackStore
from tests.rlhf_core.store.records_in_store import interaction, open_comparison, open_interactions


def batch_up_to(
    store: FeedbackStore, batch_id: str, current: dict[str, str], last: str | None = None
) -> PreferenceBatch:
    cursor = store.cursor()
    last = last or store.read_after(cursor, 100)[-1][0]
    return PreferenceBatch(
        batch_id=batch_id,
        created_at=1.0,
        first_entry=cursor,
        last_entry=last,
        events=1,
        current_event_ids=current,
    )


def test_a_thumb_counts_for_the_version_that_answered(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a", version=3), interaction("b", version=12))
    store = FeedbackStore(redis_client)
    recorded = store.rate("a", "ann", "up", reasons=("clear",), comment='é "quoted"', now=5.0)
    store.rate("b", "ann", "down", now=6.0)
    assert (recorded.first, recorded.changed, recorded.event.policy_version) == (True, True, 3)
    assert store.rating("a", "ann") == recorded.event
    assert recorded.event.comment == 'é "quoted"'
    assert store.approval() == [
        Approval(policy_version=3, up=1, down=0),
        Approval(policy_version=12, up=0, down=1),
    ]


def test_the_same_thumb_again_writes_nothing(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"))
    store = FeedbackStore(redis_client)
    first = store.rate("a", "ann", "up", now=5.0)
    again = store.rate("a", "ann", "up", now=6.0)
    assert (again.first, again.changed, again.event) == (False, False, first.event)
    assert len(store.read_after(START, 10)) == 1


def test_a_changed_thumb_names_the_one_it_replaces_and_moves_the_counters(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"))
    store = FeedbackStore(redis_client)
    first = store.rate("a", "ann", "up", now=5.0)
    second = store.rate("a", "ann", "down", now=6.0)
    assert second.event.supersedes == first.event.event_id
    assert (second.first, second.changed) == (False, True)
    assert store.approval() == [Approval(policy_version=1, up=0, down=1)]
    assert store.unread() == 1


def test_a_withdrawn_thumb_counts_nowhere_and_can_be_given_again(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"))
    store = FeedbackStore(redis_client)
    first = store.rate("a", "ann", "up", now=5.0)
    gone = store.withdraw("a", "ann", now=6.0)
    assert gone is not None
    assert (gone.value, gone.supersedes) == (None, first.event.event_id)
    assert store.withdraw("a", "ann", now=7.0) is None
    assert store.rating("a", "ann") is None
    assert (store.unread(), store.approval()) == (0, [Approval(policy_version=1, up=0, down=0)])
    assert store.current_event_id("rating", "a", "ann") == ""
    again = store.rate("a", "ann", "up", now=8.0)
    assert again.first
    assert again.event.supersedes == gone.event_id


def test_an_answer_that_is_still_streaming_cannot_be_rated(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a", status="streaming"))
    with pytest.raises(ConflictError, match="a is still being answered"):
        FeedbackStore(redis_client).rate("a", "ann", "up", now=5.0)


def test_an_unknown_answer_cannot_be_rated(redis_client: redis.Redis) -> None:
    with pytest.raises(NotFoundError, match="no interaction ghost"):
        FeedbackStore(redis_client).rate("ghost", "ann", "up", now=5.0)


@pytest.mark.parametrize(("status", "stored"), [("aborted", True), ("done", False)])
def test_what_may_not_be_learned_from_is_counted_but_does_not_wait_for_a_batch(
    redis_client: redis.Redis, status: InteractionStatus, stored: bool
) -> None:
    open_interactions(redis_client, interaction("a", status=status, stored=stored))
    store = FeedbackStore(redis_client)
    assert not store.rate("a", "ann", "down", now=5.0).event.trains
    assert (store.unread(), store.approval()) == (0, [Approval(policy_version=1, up=0, down=1)])


def test_a_write_that_is_sent_twice_counts_once(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"))
    store = FeedbackStore(redis_client)
    sent: list[object] = []
    original = store._rate

    def send_twice(keys: list[str], args: list[object]) -> object:
        first = original(keys, args)
        store._rate = original  # type: ignore[method-assign]
        store.rate("a", "ann", "down", now=5.5)  # someone else's change arrives between the two
        sent.extend([first, original(keys, args)])
        return sent[-1]

    store._rate = send_twice  # type: ignore[method-assign, assignment]
    recorded = store.rate("a", "ann", "up", now=5.0)
    assert sent[0] == sent[1]
    assert recorded.event.value == "up"
    assert len(store.read_after(START, 10)) == 2
    rating = store.rating("a", "ann")
    assert rating is not None
    assert rating.value == "down"


def test_the_first_choice_reveals_the_sides_and_a_later_change_does_not_train(redis_client: redis.Redis) -> None:
    open_comparison(redis_client)
    store = FeedbackStore(redis_client)
    assert store.comparison("cmp").revealed_at is None
    first = store.choose("cmp", "ann", "left", now=5.5)
    assert (first.first, first.event.trains, store.unread()) == (True, True, 1)
    assert store.comparison("cmp").revealed_at == 5.5
    changed = store.choose("cmp", "ann", "right", now=6.0)
    assert (changed.event.trains, changed.event.supersedes) == (False, first.event.event_id)
    assert (store.unread(), store.comparison("cmp").revealed_at) == (0, 5.5)
    assert store.choice("cmp", "ann") == changed.event


def test_saying_why_after_the_reveal_leaves_the_blind_choice_in_training(redis_client: redis.Redis) -> None:
    open_comparison(redis_client)
    store = FeedbackStore(redis_client)
    store.choose("cmp", "ann", "left", now=5.5)
    explained = store.choose("cmp", "ann", "left", reasons=("helpful",), now=6.0)
    assert (explained.event.trains, explained.event.reasons, store.unread()) == (True, ("helpful",), 1)
    store.choose("cmp", "ann", "right", now=7.0)
    back = store.choose("cmp", "ann", "left", now=8.0)  # chosen again with both names known
    assert (back.event.trains, store.unread()) == (False, 0)


@pytest.mark.parametrize(("choice", "unread"), [("left", 1), ("both_bad", 1), ("tie", 1), ("skip", 0)])
def test_only_choices_that_teach_something_wait_for_a_batch(
    redis_client: redis.Redis, choice: ChoiceValue, unread: int
) -> None:
    open_comparison(redis_client)
    store = FeedbackStore(redis_client)
    store.choose("cmp", "ann", choice, now=5.0)
    assert store.unread() == unread


def test_a_comparison_cannot_be_decided_while_an_answer_streams(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("cmp-right", status="streaming"))
    open_comparison(redis_client)
    with pytest.raises(ConflictError):
        FeedbackStore(redis_client).choose("cmp", "ann", "left", now=5.0)


def test_a_batch_takes_its_entries_once(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"), interaction("b"))
    store = FeedbackStore(redis_client)
    first = store.rate("a", "ann", "up", now=5.0).event
    store.rate("b", "ann", "up", now=6.0)
    entry = store.read_after(START, 1)[0][0]
    batch = batch_up_to(store, "one", {"rating:a:ann": first.event_id}, entry)
    rival = batch_up_to(store, "two", {"rating:a:ann": first.event_id}, entry)
    assert store.commit_batch(batch)
    assert store.commit_batch(batch)  # sent again
    assert not store.commit_batch(rival)
    assert (store.batches(), store.cursor(), store.unread(), store.since_policy()) == (["one"], entry, 1, 2)
    assert store.last_feedback_at() == 5.0


def test_a_judgement_changed_during_the_collection_waits_for_the_next_batch(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"))
    store = FeedbackStore(redis_client)
    first = store.rate("a", "ann", "up", now=5.0).event
    batch = batch_up_to(store, "one", {"rating:a:ann": first.event_id})
    store.rate("a", "ann", "down", now=6.0)
    assert store.commit_batch(batch)
    assert (store.unread(), store.since_policy()) == (1, 1)


def test_a_policy_training_uses_up_what_the_batches_hold(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"), interaction("b"))
    store = FeedbackStore(redis_client)
    event = store.rate("a", "ann", "up", now=5.0).event
    store.commit_batch(batch_up_to(store, "one", {"rating:a:ann": event.event_id}))
    store.rate("b", "ann", "up", now=6.0)
    store.take_for_policy()
    assert store.since_policy() == 1  # only what is in no batch yet


def test_current_events_are_read_in_bulk(redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("a"))
    store = FeedbackStore(redis_client)
    event = store.rate("a", "ann", "up", now=5.0).event
    asked = [keys.judgement("rating", "a", "ann"), keys.judgement("rating", "a", "bob")]
    assert store.current_event_ids(asked) == {"rating:a:ann": event.event_id, "rating:a:bob": ""}
    assert store.current_event_ids([]) == {}
