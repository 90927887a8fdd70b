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


def test_a_report_is_no_rating_and_is_learned_from(remarks: RemarkStore, redis_client: redis.Redis) -> None:
    feedback = FeedbackStore(redis_client)
    remarks.make("report", "a", "ann", reasons=["toxic"], now=5.0)
    remarks.make("review", "a", "rev", reasons=["toxicity:flag"], now=6.0)
    assert feedback.approval() == []
    assert feedback.rating("a", "ann") is None
    assert feedback.unread() == 2
    remarks.withdraw("report", "a", "ann", now=7.0)
    assert feedback.unread() == 1


def test_standing_reports_are_listed_newest_first_with_the_reviews_of_their_answers(remarks: RemarkStore) -> None:
    for at, name in enumerate("abc"):
        remarks.make("report", name, "ann", reasons=["toxic"], now=float(at))
    remarks.make("report", "a", "bob", reasons=["bias"], now=9.0)
    remarks.make("review", "b", "rev", reasons=["toxicity:ok"], now=10.0)
    remarks.make("review", "b", "rev", reasons=["toxicity:flag"], now=11.0)
    remarks.withdraw("report", "c", "ann", now=12.0)
    listed = [(each.report.target, each.report.rater, each.reviews) for each in remarks.reports(10)]
    assert listed == [("a", "bob", 0), ("b", "ann", 1), ("a", "ann", 0)]
    assert [each.report.target for each in remarks.reports(1)] == ["a"]
    assert remarks.reports(0) == []
    remarks.withdraw("review", "b", "rev", now=13.0)
    assert [each.reviews for each in remarks.reports(10)] == [0, 0, 0]


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
