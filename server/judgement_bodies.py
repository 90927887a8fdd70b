"""What people say of answers, as it comes over HTTP. Unknown fields are refused."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import REASONS, REVIEWED, ChoiceValue, RatingValue, ReportCategory, Reviewed

Reasons = Annotated[tuple[str, ...], Meta(max_length=5)]
Comment = Annotated[str, Meta(max_length=4000)]


class RatingBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    value: RatingValue
    reasons: Reasons = ()
    comment: Comment = ""


class ReportBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    category: ReportCategory
    note: Comment = ""


class ReviewBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a reviewer looked at, and found in order or not; at least one of them."""

    accuracy: Reviewed | None = None
    toxicity: Reviewed | None = None
    bias: Reviewed | None = None
    unhelpfulness: Reviewed | None = None
    note: Comment = ""

    def reasons(self) -> tuple[str, ...]:
        """As records have it. Raises InvalidRequestError when nothing was looked at."""
        said = tuple(f"{name}:{value}" for name in REVIEWED if (value := getattr(self, name)) is not None)
        if not said:
            raise InvalidRequestError(f"a review says ok or flag of one of {', '.join(REVIEWED)}", param="accuracy")
        return said


class ChoiceBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    choice: ChoiceValue
    reasons: Reasons = ()
    comment: Comment = ""


def check_reasons(reasons: tuple[str, ...]) -> None:
    for index, reason in enumerate(reasons):
        if reason not in REASONS:
            known = ", ".join(sorted(REASONS))
            raise InvalidRequestError(f"reasons[{index}] is {reason[:80]!r}; known are {known}", param="reasons")
