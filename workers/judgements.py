"""What a training reads: the judgements that still stand at this moment, and the prompts that people sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from rlhf_core.preferences import (
    Split,
    current_judgements,
    current_remarks,
    load_batches,
    prompt_key,
    rating_key,
    split_of,
)
from rlhf_core.records import PreferenceBatch, PreferencePair, RatedResponse, Remark
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore

RECENT_INTERACTIONS = 4000
"""How far back prompts are taken from."""


def standing_judgements(
    feedback: FeedbackStore, directory: Path, batch_ids: Sequence[str]
) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """Judgements of the batches that nobody has changed or withdrawn since. Asks the store at every call."""
    batches = load_batches(directory, batch_ids)
    return filter_standing(batches, _current(feedback, batches))


def standing_remarks(feedback: FeedbackStore, directory: Path, batch_ids: Sequence[str]) -> list[Remark]:
    """Likewise of reports and reviews."""
    batches = load_batches(directory, batch_ids)
    return current_remarks(batches, _current(feedback, batches))


def _current(feedback: FeedbackStore, batches: Sequence[PreferenceBatch]) -> dict[str, str]:
    """The event that is current now, by the key of each judgement of the batches."""
    return feedback.current_event_ids(list(dict.fromkeys(key for each in batches for key in each.current_event_ids)))


def filter_standing(
    batches: Sequence[PreferenceBatch], current: Mapping[str, str]
) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """Keep what is current under the key of its own event.

    A `both_bad` became two ratings, whose event stands under the comparison's key and not under a rating's.
    """
    still = {event_id for event_id in current.values() if event_id}
    kept = [
        msgspec.structs.replace(
            batch,
            ratings=tuple(each for each in batch.ratings if each.event_id in still),
            pairs=tuple(each for each in batch.pairs if each.event_id in still),
        )
        for batch in batches
    ]
    derived = {rating_key(each): each.event_id for batch in kept for each in batch.ratings}
    return current_judgements(kept, {**current, **derived})


def recent_prompts(interactions: InteractionStore, split: Split, longest: int) -> list[tuple[int, ...]]:
    """Distinct prompts of one split, newest first, as token ids; those over `longest` tokens are left out."""
    found: dict[tuple[int, ...], None] = {}
    for interaction in interactions.recent(RECENT_INTERACTIONS):
        token_ids = interaction.prompt_token_ids
        usable = interaction.stored and interaction.messages and 0 < len(token_ids) <= longest
        if usable and split_of(prompt_key(interaction.messages)) == split:
            found[token_ids] = None
    return list(found)
