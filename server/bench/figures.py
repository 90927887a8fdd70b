"""What a list of answers comes to."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rlhf_core.errors import AttuneError
from server.bench.client import Heard


@dataclass(frozen=True)
class Speed:
    """One server under one number of users. Times in milliseconds."""

    users: int
    tokens_per_second: float
    first: tuple[float, float]
    """Time to first token, p50 and p99."""
    between: tuple[float, float]
    """Between two frames of one stream, p50 and p99."""
    tokens_per_frame: float


def speed_of(heard: Sequence[Heard], users: int) -> Speed:
    """Raises AttuneError when an answer failed: the speed of the others would say nothing."""
    if failed := [one.error for one in heard if one.error or not one.frames]:
        raise AttuneError(f"{len(failed)} of {len(heard)} answers failed: {failed[0] or 'no text'}")
    tokens = sum(one.usage.completion_tokens for one in heard)
    seconds = max(one.ended_at for one in heard) - min(one.sent_at for one in heard)
    return Speed(
        users=users,
        tokens_per_second=tokens / seconds,
        first=middle_and_tail([one.first for one in heard]),
        between=middle_and_tail([gap for one in heard for gap in one.gaps]),
        tokens_per_frame=tokens / sum(len(one.frames) for one in heard),
    )


def middle_and_tail(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99, in milliseconds."""
    return quantile(seconds, 50), quantile(seconds, 99)


def quantile(seconds: Sequence[float], percent: int) -> float:
    """In milliseconds, between neighbours linearly. NaN of nothing."""
    if len(seconds) < 2:
        return 1000 * seconds[0] if seconds else float("nan")
    return 1000 * statistics.quantiles(seconds, n=100, method="inclusive")[percent - 1]
