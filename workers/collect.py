"""Takes the judgements that arrived since the last batch and makes a PreferenceBatch of them.

The batch is on disk before the cursor moves over its entries, and the cursor moves by compare-and-set: each entry is
in exactly one batch, whatever is killed when.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlhf_core.preferences import batch_path, judgement_key, prompt_key, save_batch
from rlhf_core.records import (
    Comparison,
    Feedback,
    Interaction,
    PreferenceBatch,
    PreferencePair,
    RatedResponse,
    Remark,
)
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore

READ_AT_ONCE = 1000
MOST_ENTRIES = 50_000
"""Entries of one batch at most; the rest waits for the next."""


def collect(
    interactions: InteractionStore, feedback: FeedbackStore, directory: Path, now: float
) -> PreferenceBatch | None:
    """Save and commit the next batch. None when there is nothing new, or another collection was faster."""
    cursor = feedback.cursor()
    entries = list(_entries(feedback, cursor))
    if not entries:
        return None
    events = [event for _, event in entries]
    batch = make_batch(interactions, feedback, events, cursor, entries[-1][0], now)
    save_batch(batch, directory)
    if not feedback.commit_batch(batch):
        if batch.batch_id not in feedback.batches():
            batch_path(directory, batch.batch_id).unlink(missing_ok=True)
        return None
    return batch


def make_batch(
    interactions: InteractionStore,
    feedback: FeedbackStore,
    events: list[Feedback],
    first_entry: str,
    last_entry: str,
    now: float,
) -> PreferenceBatch:
    """What the events, in log order, say in the end: of each judgement the last word, and nothing if withdrawn."""
    last_words: dict[str, Feedback] = {}
    for event in events:
        key = judgement_key(event.kind, event.target, event.rater)
        last_words.pop(key, None)  # so that they stand in the order in which they were said
        last_words[key] = event
    standing = [event for event in last_words.values() if event.value is not None]
    usable = [event for event in standing if event.trains]
    comparisons = [(event, feedback.comparison(event.target)) for event in usable if event.kind == "comparison"]
    needed = [event.target for event in usable if event.kind != "comparison"]
    needed += [side for _, comparison in comparisons for side in (comparison.left, comparison.right)]
    found = {key: each for key, each in interactions.many(dict.fromkeys(needed)).items() if _has_content(each)}
    compared = {event.event_id: comparison for event, comparison in comparisons}
    ratings, pairs, remarks = list[RatedResponse](), list[PreferencePair](), list[Remark]()
    for event in usable:
        if event.kind == "comparison":
            comparison = compared[event.event_id]
            if comparison.left in found and comparison.right in found:
                left, right = found[comparison.left], found[comparison.right]
                ratings += _both_bad(event, left, right)
                pairs += _preference(event, comparison, left, right)
        elif event.target in found:
            answer = found[event.target]
            if event.kind == "rating":
                ratings.append(_rated(event, answer, event.value))
            else:
                remarks.append(Remark(kind=event.kind, **_of_one_answer(event, answer)))
    return PreferenceBatch(
        batch_id=f"batch-{last_entry}",
        created_at=now,
        first_entry=first_entry,
        last_entry=last_entry,
        events=len(events),
        ratings=tuple(ratings),
        pairs=tuple(pairs),
        remarks=tuple(remarks),
        current_event_ids={key: "" if event.value is None else event.event_id for key, event in last_words.items()},
    )


def _entries(feedback: FeedbackStore, cursor: str) -> Iterator[tuple[str, Feedback]]:
    for _ in range(MOST_ENTRIES // READ_AT_ONCE):
        entries = feedback.read_after(cursor, READ_AT_ONCE)
        yield from entries
        if len(entries) < READ_AT_ONCE:
            return
        cursor = entries[-1][0]


def _has_content(interaction: Interaction) -> bool:
    return bool(interaction.prompt_token_ids and interaction.token_ids)


def _of_one_answer(event: Feedback, interaction: Interaction) -> dict[str, Any]:
    """The fields that a thumb shares with a remark."""
    return {
        "event_id": event.event_id,
        "rater": event.rater,
        "interaction_id": interaction.interaction_id,
        "policy_version": interaction.policy_version,
        "prompt_token_ids": interaction.prompt_token_ids,
        "token_ids": interaction.token_ids,
        "prompt_key": prompt_key(interaction.messages),
        "reasons": event.reasons,
        "created_at": event.created_at,
    }


def _rated(event: Feedback, interaction: Interaction, value: object) -> RatedResponse:
    return RatedResponse(value="up" if value == "up" else "down", **_of_one_answer(event, interaction))


def _both_bad(event: Feedback, left: Interaction, right: Interaction) -> list[RatedResponse]:
    """Besides being a tie, `both_bad` says of each answer what a thumb down says."""
    return [_rated(event, side, "down") for side in (left, right)] if event.value == "both_bad" else []


def _preference(event: Feedback, comparison: Comparison, left: Interaction, right: Interaction) -> list[PreferencePair]:
    """One pair for a choice or a tie between answers that differ, else none."""
    if event.value not in ("left", "right", "tie", "both_bad") or left.token_ids == right.token_ids:
        return []
    chosen, rejected = (right, left) if event.value == "right" else (left, right)
    return [
        PreferencePair(
            event_id=event.event_id,
            rater=event.rater,
            comparison_id=event.target,
            policy_version=left.policy_version,
            prompt_token_ids=left.prompt_token_ids,
            chosen_token_ids=chosen.token_ids,
            rejected_token_ids=rejected.token_ids,
            chosen_side="right" if event.value == "right" else "left",
            prompt_key=prompt_key(comparison.messages),
            tie=event.value in ("tie", "both_bad"),
            reasons=event.reasons,
            created_at=event.created_at,
        )
    ]
