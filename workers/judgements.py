"""What a training reads: the judgements that still stand at this moment, and the prompts that people sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from rlhf_core.preferences import Split, current_judgements, load_batches, prompt_key, rating_key, split_of
from rlhf_core.records import PreferenceBatch, PreferencePair, RatedResponse
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore

RECENT_INTERACTIONS = 4000
"""How far back prompts are taken from."""


def standing_judgements(
    feedback: FeedbackStore, directory: Path, batch_ids: Sequence[str]
) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """Judgements of the batches that nobody has changed or withdrawn since. Asks the store at every call."""
    batches = load_batches(directory, batch_ids)
    keys = list(dict.fromkeys(key for batch in batches for key in batch.current_event_ids))
    return filter_standing(batches, feedback.current_event_ids(keys))


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
