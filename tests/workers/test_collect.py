from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import redis

from rlhf_core.preferences import load_batches, prompt_key
from rlhf_core.records import ChoiceValue, Message, PreferenceBatch
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from rlhf_core.store.remarks import RemarkStore
from tests.rlhf_core.store.records_in_store import interaction, open_comparison, open_interactions
from workers.collect import collect
from workers.judgements import standing_judgements, standing_remarks


def collected(client: redis.Redis, directory: Path) -> PreferenceBatch:
    batch = collect(InteractionStore(client), FeedbackStore(client), directory, 50.0)
    assert batch is not None
    assert load_batches(directory, [batch.batch_id]) == [batch]
    return batch


def test_a_thumb_becomes_a_rated_response_with_its_tokens(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_interactions(redis_client, interaction("a", version=3, token_ids=(4, 2, 1)))
    event = FeedbackStore(redis_client).rate("a", "ann", "down", now=5.0).event
    batch = collected(redis_client, tmp_path)
    (rated,) = batch.ratings
    assert (rated.value, rated.prompt_token_ids, rated.token_ids) == ("down", (5, 6), (4, 2, 1))
    assert (rated.event_id, rated.policy_version) == (event.event_id, 3)
    assert rated.prompt_key == prompt_key([Message("user", "a")])
    assert batch.current_event_ids == {"rating:a:ann": event.event_id}


def test_each_judgement_is_in_one_batch_and_nothing_new_makes_none(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_interactions(redis_client, *(interaction(f"i{at}") for at in range(6)))
    feedback = FeedbackStore(redis_client)
    for at in range(4):
        feedback.rate(f"i{at}", "ann", "up", now=5.0)
    first = collected(redis_client, tmp_path)
    for at in range(4, 6):
        feedback.rate(f"i{at}", "ann", "up", now=6.0)
    second = collected(redis_client, tmp_path)
    assert [each.interaction_id for each in first.ratings] == ["i0", "i1", "i2", "i3"]
    assert [each.interaction_id for each in second.ratings] == ["i4", "i5"]
    assert second.first_entry == first.last_entry
    assert collect(InteractionStore(redis_client), feedback, tmp_path, 51.0) is None
    assert feedback.batches() == [first.batch_id, second.batch_id]
    assert (feedback.unread(), feedback.since_policy()) == (0, 6)


def test_a_collection_that_is_overtaken_leaves_nothing(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_interactions(redis_client, interaction("a"), interaction("b"))
    store = FeedbackStore(redis_client)
    store.rate("a", "ann", "up", now=5.0)

    class Overtaken(FeedbackStore):
        def commit_batch(self, batch: PreferenceBatch) -> bool:
            store.rate("b", "ann", "up", now=6.0)
            collected(redis_client, tmp_path)
            return super().commit_batch(batch)

    assert collect(InteractionStore(redis_client), Overtaken(redis_client), tmp_path, 50.0) is None
    assert [path.stem for path in tmp_path.iterdir()] == store.batches()
    assert len(store.batches()) == 1


def test_the_last_word_counts_and_a_withdrawn_one_does_not(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_interactions(redis_client, interaction("a"), interaction("b"))
    feedback = FeedbackStore(redis_client)
    feedback.rate("a", "ann", "up", now=5.0)
    feedback.rate("a", "ann", "down", now=6.0)
    feedback.rate("b", "ann", "up", now=7.0)
    feedback.withdraw("b", "ann", now=8.0)
    batch = collected(redis_client, tmp_path)
    assert [(each.interaction_id, each.value) for each in batch.ratings] == [("a", "down")]
    assert batch.events == 4
    assert batch.current_event_ids["rating:b:ann"] == ""


@pytest.mark.parametrize(("choice", "chosen"), [("left", (8, 1)), ("right", (9, 1))])
def test_a_decisive_choice_becomes_a_pair(
    redis_client: redis.Redis, tmp_path: Path, choice: ChoiceValue, chosen: tuple[int, ...]
) -> None:
    open_comparison(redis_client)
    FeedbackStore(redis_client).choose("cmp", "ann", choice, now=5.0)
    batch = collected(redis_client, tmp_path)
    (pair,) = batch.pairs
    assert (pair.chosen_token_ids, pair.chosen_side) == (chosen, choice)
    assert {pair.chosen_token_ids, pair.rejected_token_ids} == {(8, 1), (9, 1)}
    assert (pair.tie, pair.reasons, pair.created_at) == (False, (), 5.0)
    assert batch.ratings == ()


def test_reasons_travel_with_thumbs_and_choices(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_interactions(redis_client, interaction("a"))
    open_comparison(redis_client)
    feedback = FeedbackStore(redis_client)
    feedback.rate("a", "ann", "down", reasons=("harmful",), now=5.0)
    feedback.choose("cmp", "ann", "right", reasons=("helpful", "clear"), now=6.0)
    batch = collected(redis_client, tmp_path)
    assert [each.reasons for each in (*batch.ratings, *batch.pairs)] == [("harmful",), ("helpful", "clear")]


def test_a_tie_is_a_pair_with_the_left_answer_first(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_comparison(redis_client)
    FeedbackStore(redis_client).choose("cmp", "ann", "tie", now=5.0)
    batch = collected(redis_client, tmp_path)
    (pair,) = batch.pairs
    assert (pair.tie, pair.chosen_side) == (True, "left")
    assert (pair.chosen_token_ids, pair.rejected_token_ids) == ((8, 1), (9, 1))
    assert batch.ratings == ()


def test_both_bad_is_a_tie_and_a_thumb_down_for_each_answer(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_comparison(redis_client)
    event = FeedbackStore(redis_client).choose("cmp", "ann", "both_bad", now=5.0).event
    batch = collected(redis_client, tmp_path)
    assert [(each.interaction_id, each.value, each.event_id) for each in batch.ratings] == [
        ("cmp-left", "down", event.event_id),
        ("cmp-right", "down", event.event_id),
    ]
    assert [(pair.tie, pair.event_id) for pair in batch.pairs] == [(True, event.event_id)]


def test_a_skip_is_covered_and_teaches_nothing(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_comparison(redis_client)
    FeedbackStore(redis_client).choose("cmp", "ann", "skip", now=5.0)
    batch = collected(redis_client, tmp_path)
    assert (batch.events, batch.ratings, batch.pairs) == (1, (), ())


def test_an_answer_without_stored_content_is_covered_and_teaches_nothing(
    redis_client: redis.Redis, tmp_path: Path
) -> None:
    empty = msgspec.structs.replace(interaction("a", stored=False), messages=(), prompt_token_ids=(), token_ids=())
    open_interactions(redis_client, empty)
    FeedbackStore(redis_client).rate("a", "ann", "up", now=5.0)
    batch = collected(redis_client, tmp_path)
    assert (batch.events, batch.ratings) == (1, ())


@pytest.mark.parametrize(("first", "second", "standing"), [("both_bad", "up", "up"), ("up", "both_bad", "down")])
def test_of_a_thumb_and_a_both_bad_on_one_answer_the_later_one_stands(
    first: str, second: str, standing: str, redis_client: redis.Redis, tmp_path: Path
) -> None:
    open_comparison(redis_client)
    feedback = FeedbackStore(redis_client)
    for at, said in enumerate((first, second)):
        if said == "up":
            feedback.rate("cmp-left", "ann", "up", now=5.0 + at)
        else:
            feedback.choose("cmp", "ann", "both_bad", now=5.0 + at)
    batch = collected(redis_client, tmp_path)
    ratings, _ = standing_judgements(feedback, tmp_path, (batch.batch_id,))
    assert [each.value for each in ratings if each.interaction_id == "cmp-left"] == [standing]


def test_reports_and_reviews_become_remarks_and_go_when_they_are_taken_back(
    redis_client: redis.Redis, tmp_path: Path
) -> None:
    open_interactions(redis_client, interaction("a", version=3, token_ids=(4, 2, 1)), interaction("b"))
    remarks, feedback = RemarkStore(redis_client), FeedbackStore(redis_client)
    event = remarks.make("report", "a", "ann", reasons=["toxic"], now=5.0).event
    remarks.make("review", "a", "rev", reasons=["toxicity:flag", "bias:ok"], now=6.0)
    remarks.make("report", "b", "ann", reasons=["bias"], now=7.0)
    remarks.withdraw("report", "b", "ann", now=8.0)
    batch = collected(redis_client, tmp_path)
    assert (batch.ratings, batch.pairs) == ((), ())
    assert [(each.kind, each.reasons) for each in batch.remarks] == [
        ("report", ("toxic",)),
        ("review", ("toxicity:flag", "bias:ok")),
    ]
    report = batch.remarks[0]
    assert (report.event_id, report.policy_version, report.token_ids) == (event.event_id, 3, (4, 2, 1))
    assert report.prompt_key == prompt_key([Message("user", "a")])
    assert batch.current_event_ids["report:b:ann"] == ""
    remarks.withdraw("review", "a", "rev", now=9.0)
    standing = standing_remarks(feedback, tmp_path, (batch.batch_id,))
    assert [each.kind for each in standing] == ["report"]
