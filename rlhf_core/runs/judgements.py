"""Judgements from files: thumbs, pairs, and what reports and reviews say of an answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from rlhf_core.errors import TrainingError
from rlhf_core.preferences import prompt_key
from rlhf_core.records import PreferencePair, RatedResponse, Remark, RemarkKind, Side, TokenIds
from rlhf_core.runs.encode import Encoder, form_of
from rlhf_core.runs.rows import PairRow, RatingRow, Row
from rlhf_core.runs.tally import Tally
from rlhf_core.runs.vocabulary import Reads


def read_judgements(
    paths: Sequence[Path], policy: Reads, tally: Tally, *, max_tokens: int
) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """Thumbs and pairs, each in the order of the files."""
    judgements = Encoder(policy, tally, max_tokens).all(paths, _judgement_texts, _judgement)
    return (
        [each for each in judgements if isinstance(each, RatedResponse)],
        [each for each in judgements if isinstance(each, PreferencePair)],
    )


class Evidence(NamedTuple):
    """All that a reward model can learn from, each kind in the order of the files."""

    ratings: list[RatedResponse]
    pairs: list[PreferencePair]
    remarks: list[Remark]


def read_evidence(paths: Sequence[Path], policy: Reads, tally: Tally, *, max_tokens: int) -> Evidence:
    """Thumbs, pairs, and what reports and reviews say of an answer."""
    found = Encoder(policy, tally, max_tokens).all(paths, _evidence_texts, _evidence)
    return Evidence(
        [each for each in found if isinstance(each, RatedResponse)],
        [each for each in found if isinstance(each, PreferencePair)],
        [each for each in found if isinstance(each, Remark)],
    )


def _is_remark(row: Row) -> TypeGuard[RatingRow]:
    return isinstance(row, RatingRow) and row.is_remark


def _evidence_texts(encoder: Encoder, row: Row) -> list[str]:
    if _is_remark(row):
        return encoder.texts(row.prompt, row.completion)
    return _judgement_texts(encoder, row)


def _evidence(encoder: Encoder, row: Row, encoded: list[list[int]]) -> RatedResponse | PreferencePair | Remark:
    if not _is_remark(row):
        return _judgement(encoder, row, encoded)
    # Only a review says what it looked at, and what it found in order.
    kind: RemarkKind = "review" if any(":" in reason for reason in row.reasons) else "report"
    return Remark(kind=kind, **_of_one_answer(encoder, row, encoded))


def _of_one_answer(encoder: Encoder, row: RatingRow, encoded: list[list[int]]) -> dict[str, Any]:
    """The fields that a thumb shares with a remark."""
    name = str(row.place)
    return {
        "event_id": name,
        "rater": row.rater,
        "interaction_id": name,
        "policy_version": 0,
        "prompt_token_ids": encoder.ids(encoded[0]),
        "token_ids": encoder.answer(encoded[0], encoded[1]),
        "prompt_key": prompt_key(row.prompt),
        "reasons": row.reasons,
        "created_at": row.created_at,
    }


def _judgement_texts(encoder: Encoder, row: Row) -> list[str]:
    if isinstance(row, PairRow):
        return encoder.texts(row.prompt, row.chosen, row.rejected)
    if isinstance(row, RatingRow) and row.up is not None:
        return encoder.texts(row.prompt, row.completion)
    raise TrainingError(f"it is {form_of(row)}, and judgements (pairs or thumbs) are wanted")


def _judgement(encoder: Encoder, row: Row, encoded: list[list[int]]) -> RatedResponse | PreferencePair:
    if isinstance(row, PairRow):
        answers = [encoder.answer(encoded[0], whole) for whole in encoded[1:]]
        return _as_pair(row, encoder.ids(encoded[0]), answers)
    assert isinstance(row, RatingRow)
    return RatedResponse(value="up" if row.up else "down", **_of_one_answer(encoder, row, encoded))


def _as_pair(row: PairRow, prompt: TokenIds, answers: Sequence[TokenIds]) -> PreferencePair:
    name = str(row.place)
    side = row.side or _drawn_side(name)
    # Of a tie the record's "chosen" is the answer on the left.
    chosen, rejected = reversed(answers) if row.tie and side == "right" else answers
    return PreferencePair(
        event_id=name,
        rater=row.rater,
        comparison_id=name,
        policy_version=0,
        prompt_token_ids=prompt,
        chosen_token_ids=chosen,
        rejected_token_ids=rejected,
        chosen_side="left" if row.tie else side,
        prompt_key=prompt_key(row.prompt),
        tie=row.tie,
        margin=row.margin,
        reasons=row.reasons,
        created_at=row.created_at,
    )


def _drawn_side(name: str) -> Side:
    """A side for pairs that name none: by chance, so that no side bias is learned from them."""
    return "left" if hashlib.sha256(name.encode()).digest()[0] % 2 else "right"
