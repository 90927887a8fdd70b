"""Preference batches on disk, how judgements are split by prompt, and which of them still count.

A batch is one JSON file named by its id, written aside, synced and renamed, so that a reader sees all of it
or nothing. What people changed or withdrew after a batch was written is dropped when the batch is read, not
by editing the file. No torch here, and no Redis: whoever reads passes in what is current.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal

import msgspec

from rlhf_core.checkpoints import sync_directory, write_synced
from rlhf_core.errors import CheckpointError, NotFoundError
from rlhf_core.records import FeedbackKind, Message, PreferenceBatch, PreferencePair, RatedResponse, Remark

Split = Literal["train", "judge", "gate"]

TRAIN_SHARE: Final = 0.5
"""Of all prompts: the reward model that PPO climbs, and PPO's own prompts."""
JUDGE_SHARE: Final = 0.3
"""The reward model that judges candidates, which PPO never sees. The rest is the gate's, and nothing is
trained on it.
"""

_BATCH_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HASH_STEPS = 1 << 32


def prompt_key(messages: Sequence[Message]) -> str:
    """Sha256, in hex, of how a conversation began: its first user message, case and spacing aside.

    All turns of a conversation share it, so that no turn of one is trained on while another tests what was learned.
    """
    root = next((message for message in messages if message.role == "user"), messages[0])
    return hashlib.sha256(" ".join(root.content.casefold().split()).encode()).hexdigest()


def split_of(prompt_key: str) -> Split:
    """The split of a prompt, by hash alone: the same in every process and release, whatever else was
    collected.

    The key is hashed again, so that the split is even for any string.
    """
    share = int(hashlib.sha256(f"split:{prompt_key}".encode()).hexdigest()[:8], 16) / _HASH_STEPS
    if share < TRAIN_SHARE:
        return "train"
    return "judge" if share < TRAIN_SHARE + JUDGE_SHARE else "gate"


def select_split(
    ratings: Iterable[RatedResponse], pairs: Iterable[PreferencePair], split: Split
) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """The judgements whose prompt belongs to `split`, in their order."""
    return (
        [rating for rating in ratings if split_of(rating.prompt_key) == split],
        [pair for pair in pairs if split_of(pair.prompt_key) == split],
    )


def judgement_key(kind: FeedbackKind, target: str, rater: str) -> str:
    """The key under which at most one judgement is current, as in `PreferenceBatch.current_event_ids`."""
    return f"{kind}:{target}:{rater}"


def rating_key(rating: RatedResponse) -> str:
    return judgement_key("rating", rating.interaction_id, rating.rater)


def pair_key(pair: PreferencePair) -> str:
    return judgement_key("comparison", pair.comparison_id, pair.rater)


def remark_key(remark: Remark) -> str:
    return judgement_key(remark.kind, remark.interaction_id, remark.rater)


def batch_path(directory: Path, batch_id: str) -> Path:
    """Where a batch lives. Raises CheckpointError for an id that could leave the directory."""
    if not _BATCH_ID.fullmatch(batch_id) or ".." in batch_id:
        raise CheckpointError(f"{batch_id!r} is not a batch id")
    return directory / f"{batch_id}.json"


def save_batch(batch: PreferenceBatch, directory: Path) -> Path:
    """Write a batch and return its file. Safe to repeat: the same batch is written over itself, whole."""
    final = batch_path(directory, batch.batch_id)
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = directory / f".{final.name}.{os.getpid()}.tmp"
    try:
        write_synced(aside, msgspec.json.format(msgspec.json.encode(batch), indent=1) + b"\n")
        aside.chmod(0o600)  # what people said is nobody else's to read
        aside.replace(final)
        sync_directory(directory)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    return final


def load_batches(directory: Path, batch_ids: Iterable[str]) -> list[PreferenceBatch]:
    """Read batches, in the order given. Raises NotFoundError or CheckpointError naming the file at fault."""
    return [_load_batch(batch_path(directory, batch_id), batch_id) for batch_id in batch_ids]


def current_judgements(
    batches: Iterable[PreferenceBatch], current_event_ids: Mapping[str, str]
) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """What may be learned from: each person's latest judgement of each target, if it still stands.

    `current_event_ids` says, by key, which event is current now; "" or a missing key means withdrawn. Checked
    at each read, because consent is taken back after a batch is written. The order is that of the batches,
    latest occurrence.
    """
    latest: dict[str, RatedResponse | PreferencePair] = {}
    for batch in batches:
        for key, judgement in _judgements(batch):
            latest.pop(key, None)
            latest[key] = judgement
    standing = [each for key, each in latest.items() if current_event_ids.get(key) == each.event_id]
    return (
        [each for each in standing if isinstance(each, RatedResponse)],
        [each for each in standing if isinstance(each, PreferencePair)],
    )


def current_remarks(batches: Iterable[PreferenceBatch], current_event_ids: Mapping[str, str]) -> list[Remark]:
    """Likewise of reports and reviews."""
    latest: dict[str, Remark] = {}
    for each in (each for batch in batches for each in batch.remarks):
        latest.pop(remark_key(each), None)
        latest[remark_key(each)] = each
    return [each for key, each in latest.items() if current_event_ids.get(key) == each.event_id]


def _judgements(batch: PreferenceBatch) -> list[tuple[str, RatedResponse | PreferencePair]]:
    ratings: list[tuple[str, RatedResponse | PreferencePair]] = [(rating_key(each), each) for each in batch.ratings]
    return ratings + [(pair_key(each), each) for each in batch.pairs]


def _load_batch(path: Path, batch_id: str) -> PreferenceBatch:
    try:
        batch = msgspec.json.decode(path.read_bytes(), type=PreferenceBatch)
    except FileNotFoundError:
        raise NotFoundError(f"there is no preference batch {batch_id} in {path.parent}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not a preference batch: {error}") from None
    if batch.batch_id != batch_id:
        raise CheckpointError(f"{path} holds the batch {batch.batch_id}")
    return batch
