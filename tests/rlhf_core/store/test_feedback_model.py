"""The feedback store against a model of it in plain Python, over random histories."""

from __future__ import annotations

from typing import Any

import pytest
import redis
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from rlhf_core.records import PreferenceBatch, RatingValue
from rlhf_core.store.feedback import FeedbackStore
from tests.rlhf_core.store.records_in_store import interaction, open_interactions

TARGETS = st.sampled_from(["a", "b", "kept-out"])
RATERS = st.sampled_from(["ann", "bob"])
VALUES = st.sampled_from(["up", "down"])


class Ratings(RuleBasedStateMachine):
    client: redis.Redis

    @initialize()
    def start(self) -> None:
        self.client.flushall()
        open_interactions(self.client, interaction("a"), interaction("b", version=2))
        open_interactions(self.client, interaction("kept-out", version=2, stored=False))
        self.store = FeedbackStore(self.client)
        self.standing: dict[tuple[str, str], str] = {}
        self.unread: set[tuple[str, str]] = set()
        self.in_batches = 0
        self.events = 0
        self.batches = 0

    @rule(answer=TARGETS, rater=RATERS, value=VALUES)
    def rate(self, answer: str, rater: str, value: RatingValue) -> None:
        recorded = self.store.rate(answer, rater, value, now=1.0)
        before = self.standing.get((answer, rater))
        assert (recorded.first, recorded.changed) == (before is None, before != value)
        if before != value:
            self.standing[answer, rater] = value
            self.events += 1
            if answer != "kept-out":
                self.unread.add((answer, rater))

    @rule(answer=TARGETS, rater=RATERS)
    def withdraw(self, answer: str, rater: str) -> None:
        withdrawn = self.store.withdraw(answer, rater, now=1.0)
        assert (withdrawn is None) == ((answer, rater) not in self.standing)
        if withdrawn is not None:
            del self.standing[answer, rater]
            self.unread.discard((answer, rater))
            self.events += 1

    @rule()
    def commit_everything(self) -> None:
        entries = self.store.read_after(self.store.cursor(), 1000)
        if not entries:
            return
        self.batches += 1
        last_words = {f"{event.kind}:{event.target}:{event.rater}": event for _, event in entries}
        batch = PreferenceBatch(
            batch_id=f"batch-{self.batches}",
            created_at=1.0,
            first_entry=self.store.cursor(),
            last_entry=entries[-1][0],
            events=len(entries),
            current_event_ids={key: event.event_id if event.value else "" for key, event in last_words.items()},
        )
        assert self.store.commit_batch(batch)
        self.in_batches += len(self.unread)
        self.unread.clear()

    @rule()
    def train_policy(self) -> None:
        self.store.take_for_policy()
        self.in_batches = 0

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        assert self.store.unread() == len(self.unread)
        assert self.store.since_policy() == len(self.unread) + self.in_batches
        assert len(self.store.read_after("0-0", 1000)) == self.events
        up = sum(value == "up" for value in self.standing.values())
        assert sum(each.up for each in self.store.approval()) == up
        assert sum(each.n for each in self.store.approval()) == len(self.standing)
        for target in ("a", "b", "kept-out"):
            for rater in ("ann", "bob"):
                rating = self.store.rating(target, rater)
                assert (rating.value if rating else None) == self.standing.get((target, rater))


def test_every_history_of_thumbs_leaves_the_store_as_the_model_says(
    redis_client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ratings, "client", redis_client, raising=False)
    small: Any = settings(
        max_examples=15,
        stateful_step_count=12,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Ratings, settings=small)
