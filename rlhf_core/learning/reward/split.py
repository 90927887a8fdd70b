"""Which judgements to hold out: no prompt on both sides, and no rater either where that is possible.

The rule. Judgements that share a prompt or a rater hang together; if they fall apart into groups from which about the
wanted share can be taken whole, groups are held out, and neither a prompt nor a rater is on both sides. Otherwise (a
few people judged everything) prompts alone are held out, and the report says so. Rows are never split by themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final, NamedTuple

from rlhf_core.learning.reward.votes import Judgement, judgements
from rlhf_core.records import PreferencePair, RatedResponse, Remark

BY_GROUP: Final = "held out by prompt and by rater: neither is on both sides"
BY_PROMPT: Final = "held out by prompt: raters judged prompts on both sides, so their habits are known"


class HeldOut(NamedTuple):
    """Judgements to learn from, and judgements to be tested on."""

    ratings: list[RatedResponse]
    pairs: list[PreferencePair]
    held_ratings: list[RatedResponse]
    held_pairs: list[PreferencePair]
    rule: str
    """Which of the two rules it was, in words."""

    def holds_out(self, remark: Remark) -> bool:
        """Whether a remark stands on the side that is tested on."""
        held = judgements(self.held_ratings, self.held_pairs)
        by_rater = self.rule == BY_GROUP and remark.rater in {each.rater for each in held}
        return by_rater or remark.prompt_key in {each.prompt_key for each in held}


def hold_out(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair], share: float, seed: int = 0) -> HeldOut:
    """Hold out about `share` of the judgements, between 0 and 1. The same judgements and seed give the same split."""
    every = judgements(ratings, pairs)
    groups = _connected(every)
    held = _take(groups, share * len(every), seed)
    rule = BY_GROUP
    if not 0.5 * share * len(every) <= len(held) <= 2.0 * share * len(every):
        prompts: dict[str, list[int]] = {}
        for at, each in enumerate(every):
            prompts.setdefault(each.prompt_key, []).append(at)
        held, rule = _take(prompts, share * len(every), seed), BY_PROMPT
    n = len(ratings)
    return HeldOut(
        [each for at, each in enumerate(ratings) if at not in held],
        [each for at, each in enumerate(pairs, start=n) if at not in held],
        [each for at, each in enumerate(ratings) if at in held],
        [each for at, each in enumerate(pairs, start=n) if at in held],
        rule,
    )


def _take(groups: dict[str, list[int]], wanted: float, seed: int) -> set[int]:
    """Whole groups in an order drawn by hash, until another would lead further from `wanted`; never all of them."""
    taken: set[int] = set()
    order = sorted(groups, key=lambda name: hashlib.sha256(f"{seed}:{name}".encode()).digest())
    for name in order[:-1]:
        if abs(len(taken) + len(groups[name]) - wanted) < abs(len(taken) - wanted):
            taken.update(groups[name])
    return taken


def _connected(every: Sequence[Judgement]) -> dict[str, list[int]]:
    """Numbers of judgements that hang together by prompts and raters, under the name of one of them."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for each in every:
        parent[root(f"prompt {each.prompt_key}")] = root(f"rater {each.rater}")
    groups: dict[str, list[int]] = {}
    for at, each in enumerate(every):
        groups.setdefault(root(f"rater {each.rater}"), []).append(at)
    return groups
