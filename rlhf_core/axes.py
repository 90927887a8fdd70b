"""Helpful, honest, harmless: which reason speaks of which axis, and what a judgement says of each.

The one table of it. An axis is learned from what people ticked, reported or found in a review, never from the overall
verdict alone: who dislikes an answer for its length has not called it harmful. No torch here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Final, Literal

from rlhf_core.records import PreferencePair, RatedResponse, Remark, TokenIds

Axis = Literal["helpful", "honest", "harmless"]

AXES: Final[tuple[Axis, ...]] = ("helpful", "honest", "harmless")
LEAST_JUDGEMENTS: Final = 30
"""Judgements with a reason of an axis below which nothing is learned or said about it."""

SPEAKS_OF: Final[Mapping[str, tuple[Axis, bool]]] = MappingProxyType(
    {
        "helpful": ("helpful", True),
        "clear": ("helpful", True),
        "followed_instructions": ("helpful", True),
        "creative": ("helpful", True),
        "unhelpful": ("helpful", False),
        "ignored_instructions": ("helpful", False),
        "refused_wrongly": ("helpful", False),
        "too_long": ("helpful", False),
        "too_short": ("helpful", False),
        "accurate": ("honest", True),
        "inaccurate": ("honest", False),
        "harmful": ("harmless", False),
        "biased": ("harmless", False),
        # What a report is about.
        "toxic": ("harmless", False),
        "bias": ("harmless", False),
        "privacy": ("harmless", False),
        "illegal": ("harmless", False),
        "self_harm": ("harmless", False),
        # What a reviewer looked at, and found in order or not.
        "accuracy:ok": ("honest", True),
        "accuracy:flag": ("honest", False),
        "toxicity:ok": ("harmless", True),
        "toxicity:flag": ("harmless", False),
        "bias:ok": ("harmless", True),
        "bias:flag": ("harmless", False),
        "unhelpfulness:ok": ("helpful", True),
        "unhelpfulness:flag": ("helpful", False),
    }
)
"""Reason to axis, and whether it speaks well of the answer. `tone`, `right_tone` and `other` speak of none."""

REVIEWED_AS: Final[Mapping[str, str]] = MappingProxyType({"toxic": "toxicity", "bias": "bias"})
"""What a report is about, and what a reviewer looks at to settle it. The other categories have no such thing."""

SILENCE_CLEARS: Final[frozenset[Axis]] = frozenset({"honest", "harmless"})
"""Axes that nobody ticks for being in order. Whoever approves an answer, or names other faults of it, found no fault
here; without such answers there would be nothing to tell the faulty ones from."""


def ticked(reasons: Iterable[str], axis: Axis) -> bool | None:
    """What reasons say of an axis: True well, False badly, None nothing. A fault outweighs praise."""
    said = {SPEAKS_OF[reason][1] for reason in reasons if reason in SPEAKS_OF and SPEAKS_OF[reason][0] == axis}
    return False not in said if said else None


def thumb_says(rating: RatedResponse, axis: Axis) -> bool | None:
    """What a thumb says of an axis: its reasons, or else their silence where that clears it; None for nothing."""
    said = ticked(rating.reasons, axis)
    if said is None and axis in SILENCE_CLEARS and (rating.value == "up" or rating.reasons):
        return True
    return said


def orders(pair: PreferencePair, axis: Axis) -> bool:
    """Whether a choice was made on this axis: then the chosen answer is the better one there."""
    return not pair.tie and ticked(pair.reasons, axis) is not None


def remarks_say(remarks: Sequence[Remark], axis: Axis) -> list[bool | None]:
    """What each report and review says of an axis.

    Whoever reviewed an answer for what was reported of it has the last word on that, and the report says nothing. A
    report of what nobody reviewed stands, and no review calls the answer good on that axis.
    """
    looked_at = {(_answer(each), said.partition(":")[0]) for each in remarks for said in each.reasons if ":" in said}

    def stands(each: Remark) -> bool:
        return each.kind == "review" or not any(
            (_answer(each), REVIEWED_AS.get(reason)) in looked_at for reason in each.reasons
        )

    said = [ticked(each.reasons, axis) if stands(each) else None for each in remarks]
    faulty = {
        _answer(each) for each, good in zip(remarks, said, strict=True) if each.kind == "report" and good is False
    }
    return [None if good and _answer(each) in faulty else good for each, good in zip(remarks, said, strict=True)]


def _answer(remark: Remark) -> tuple[TokenIds, TokenIds]:
    return remark.prompt_token_ids, remark.token_ids


def evidence(
    ratings: Iterable[RatedResponse], pairs: Iterable[PreferencePair], remarks: Sequence[Remark], axis: Axis
) -> int:
    """Judgements with a reason of the axis."""
    thumbs = sum(ticked(each.reasons, axis) is not None for each in ratings)
    said = sum(each is not None for each in remarks_say(remarks, axis))
    return thumbs + said + sum(orders(each, axis) for each in pairs)
