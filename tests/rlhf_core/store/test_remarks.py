"""Reports and reviews in the feedback log."""

from __future__ import annotations

import pytest
import redis

from rlhf_core.errors import ConflictError, NotFoundError
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.remarks import RemarkStore
from tests.rlhf_core.store.records_in_store import interaction, open_interactions


@pytest.fixture
def remarks(redis_client: redis.Redis) -> RemarkStore:
    open_interactions(redis_client, interaction("a", version=3), interaction("b"), interaction("c"))
    return RemarkStore(redis_client)


def test_a_report_is_made_repeated_changed_and_taken_back(remarks: RemarkStore, redis_client: redis.Redis) -> None:
    first = remarks.make("report", "a", "ann", reasons=["toxic"], comment="rude", now=5.0)
    again = remarks.make("report", "a", "ann", reasons=["toxic"], comment="rude", now=6.0)
    other = remarks.make("report", "a", "ann", reasons=["bias"], now=7.0)
    assert [(each.first, each.changed) for each in (first, again, other)] == [
        (True, True),
        (False, False),
        (False, True),
    ]
    assert again.event == first.event
    assert (first.event.policy_version, first.event.trains) == (3, True)
    assert other.event.supersedes == first.event.event_id
    assert remarks.find("report", "a", "ann") == other.event
    assert remarks.find("review", "a", "ann") is None
    withdrawn = remarks.withdraw("report", "a", "ann", now=8.0)
    assert withdrawn is not None
    assert withdrawn.value is None
    assert remarks.find("report", "a", "ann") is None
    assert remarks.withdraw("report", "a", "ann", now=9.0) is None
    log = [event for _, event in FeedbackStore(redis_client).read_after("0-0", 10)]
    assert [(event.value, event.reasons) for event in log] == [("made", ("toxic",)), ("made", ("bias",)), (None, ())]


def test_remarks_are_no_verdicts_and_fill_no_batch(remarks: RemarkStore, redis_client: redis.Redis) -> None:
    feedback = FeedbackStore(redis_client)
    remarks.make("report", "a", "ann", reasons=["toxic"], now=5.0)
    remarks.make("review", "a", "rev", reasons=["toxicity:flag"], now=6.0)
    assert feedback.approval() == []
    assert feedback.rating("a", "ann") is None
    assert (feedback.unread(), feedback.since_policy()) == (0, 0)
    feedback.rate("a", "ann", "down", now=7.0)
    remarks.withdraw("report", "a", "ann", now=8.0)
    assert feedback.unread() == 1


def listed(remarks: RemarkStore, *, waiting: bool = False) -> list[tuple[str, list[str], int]]:
    found = remarks.reported(10, waiting=waiting)
    return [(each.interaction_id, [report.rater for report in each.reports], each.reviews) for each in found]


def test_reported_answers_are_listed_the_last_reported_first(remarks: RemarkStore) -> None:
    for at, name in enumerate("abc"):
        remarks.make("report", name, "ann", reasons=["toxic"], now=float(at))
    remarks.make("report", "a", "bob", reasons=["bias"], now=9.0)
    remarks.withdraw("report", "c", "ann", now=10.0)
    assert listed(remarks) == [("a", ["bob", "ann"], 0), ("b", ["ann"], 0)]
    assert [each.interaction_id for each in remarks.reported(1)] == ["a"]
    assert remarks.reported(0) == []


def test_an_answer_waits_from_its_newest_report_until_the_next_review(remarks: RemarkStore) -> None:
    remarks.make("report", "a", "ann", reasons=["toxic"], now=1.0)
    remarks.make("report", "b", "ann", reasons=["toxic"], now=2.0)
    remarks.make("review", "a", "rev", reasons=["toxicity:ok"], now=3.0)
    remarks.make("review", "a", "rev", reasons=["toxicity:flag"], now=4.0)
    assert listed(remarks, waiting=True) == [("b", ["ann"], 0)]
    assert listed(remarks) == [("b", ["ann"], 0), ("a", ["ann"], 1)]
    # What is reported anew, or otherwise, has not been reviewed.
    remarks.make("report", "a", "ann", reasons=["privacy"], now=5.0)
    assert [name for name, _, _ in listed(remarks, waiting=True)] == ["a", "b"]
    remarks.make("review", "a", "rev", reasons=["toxicity:ok"], now=6.0)
    remarks.withdraw("review", "a", "rev", now=7.0)
    assert [name for name, _, _ in listed(remarks, waiting=True)] == ["a", "b"]
    remarks.withdraw("report", "a", "ann", now=8.0)
    assert [name for name, _, _ in listed(remarks, waiting=True)] == ["b"]
    assert remarks.withdraw("review", "a", "rev", now=9.0) is None


def test_many_reviewed_answers_do_not_hide_one_that_waits(remarks: RemarkStore, redis_client: redis.Redis) -> None:
    open_interactions(redis_client, *(interaction(f"i{at}") for at in range(250)))
    remarks.make("report", "a", "ann", reasons=["toxic"], now=1.0)
    for at in range(250):
        remarks.make("report", f"i{at}", "ann", reasons=["toxic"], now=2.0 + at)
        remarks.make("review", f"i{at}", "rev", reasons=["toxicity:ok"], now=300.0 + at)
    assert [name for name, _, _ in listed(remarks, waiting=True)] == ["a"]


def test_what_is_not_there_or_still_streams_cannot_be_reported(remarks: RemarkStore, redis_client: redis.Redis) -> None:
    open_interactions(redis_client, interaction("now", status="streaming"))
    with pytest.raises(NotFoundError, match="no interaction nothing"):
        remarks.make("report", "nothing", "ann", reasons=["toxic"], now=5.0)
    with pytest.raises(ConflictError, match="still being answered"):
        remarks.make("report", "now", "ann", reasons=["toxic"], now=5.0)


def test_what_was_cut_off_is_learned_from_and_what_is_not_stored_is_not(
    remarks: RemarkStore, redis_client: redis.Redis
) -> None:
    open_interactions(redis_client, interaction("cut", status="aborted"), interaction("kept-out", stored=False))
    trains = [
        remarks.make("report", name, "ann", reasons=["toxic"], now=5.0).event.trains for name in ("cut", "kept-out")
    ]
    assert trains == [True, False]
    # Half an answer may be harmful; whether the whole would have helped, nobody can say.
    assert not remarks.make("review", "cut", "rev", reasons=["unhelpfulness:flag"], now=6.0).event.trains
