from __future__ import annotations

from pathlib import Path

import msgspec
import redis

from rlhf_core.preferences import prompt_key, split_of
from rlhf_core.records import Message
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from tests.rlhf_core.store.records_in_store import interaction, open_comparison, open_interactions
from workers.collect import collect
from workers.judgements import recent_prompts, standing_judgements


def collect_now(client: redis.Redis, directory: Path) -> None:
    assert collect(InteractionStore(client), FeedbackStore(client), directory, 50.0) is not None


def test_what_was_withdrawn_or_changed_after_its_batch_is_dropped(redis_client: redis.Redis, tmp_path: Path) -> None:
    open_interactions(redis_client, interaction("a"), interaction("b"), interaction("c"))
    feedback = FeedbackStore(redis_client)
    for target in ("a", "b", "c"):
        feedback.rate(target, "ann", "up", now=5.0)
    collect_now(redis_client, tmp_path)
    feedback.withdraw("b", "ann", now=6.0)
    feedback.rate("c", "ann", "down", now=6.0)
    ratings, _ = standing_judgements(feedback, tmp_path, feedback.batches())
    assert [each.interaction_id for each in ratings] == ["a"]
    collect_now(redis_client, tmp_path)
    ratings, _ = standing_judgements(feedback, tmp_path, feedback.batches())
    assert [(each.interaction_id, each.value) for each in ratings] == [("a", "up"), ("c", "down")]


def test_the_tie_and_the_thumbs_of_a_both_bad_stand_as_long_as_the_choice(
    redis_client: redis.Redis, tmp_path: Path
) -> None:
    open_comparison(redis_client)
    feedback = FeedbackStore(redis_client)
    feedback.choose("cmp", "ann", "both_bad", now=5.0)
    collect_now(redis_client, tmp_path)
    ratings, pairs = standing_judgements(feedback, tmp_path, feedback.batches())
    assert [(each.interaction_id, each.value) for each in ratings] == [("cmp-left", "down"), ("cmp-right", "down")]
    assert [each.tie for each in pairs] == [True]
    feedback.choose("cmp", "ann", "left", now=6.0)
    assert standing_judgements(feedback, tmp_path, feedback.batches()) == ([], [])


def test_prompts_of_the_splits_are_distinct_and_apart(redis_client: redis.Redis) -> None:
    texts = [f"question {at}" for at in range(40)]
    for at, text in enumerate([*texts, texts[0]]):
        one = interaction(f"i{at}", text=text)
        open_interactions(
            redis_client, msgspec.structs.replace(one, prompt_token_ids=(at % 40 + 10,), created_at=float(at))
        )
    store = InteractionStore(redis_client)
    train, judge, gate = (recent_prompts(store, split, 100) for split in ("train", "judge", "gate"))
    assert sorted(train + judge + gate) == [(at + 10,) for at in range(40)]
    expected = [at for at in range(40) if split_of(prompt_key([Message("user", texts[at])])) == "gate"]
    assert sorted(gate) == [(at + 10,) for at in expected]


def test_a_prompt_that_leaves_no_room_for_an_answer_is_left_out(redis_client: redis.Redis) -> None:
    for at, name in enumerate("abc"):
        open_interactions(redis_client, msgspec.structs.replace(interaction(name), prompt_token_ids=(at, 6)))
    store = InteractionStore(redis_client)
    assert sum(len(recent_prompts(store, split, 2)) for split in ("train", "judge", "gate")) == 3
    assert sum(len(recent_prompts(store, split, 1)) for split in ("train", "judge", "gate")) == 0
