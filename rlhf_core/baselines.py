"""What a reward model must beat: rules that look at an answer's length, or at nothing.

Fitted on the reward model's own training judgements and stored with it, so both are always compared on the
same held-out ones. A reward model that does no better than length teaches a policy to pad.
"""

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from rlhf_core.records import PreferencePair, RatedResponse


class Baselines(msgspec.Struct, frozen=True, kw_only=True):
    """Two rules without a model: by response length in tokens, and whatever people said most often. Neither says
    anything of ties, which are left out everywhere.
    """

    length_threshold: float = 0.0
    longer_is_up: bool = True
    """A thumb is predicted up when (length > threshold) equals this."""
    longer_wins: bool = True
    """The longer (or else the shorter) answer is predicted to be chosen; equally long ones count half."""
    majority_up: bool = True
    majority_left: bool = True

    def length_hits(self, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> float:
        """How many judgements the length rule predicts."""
        thumbs = sum(self.predicts_up(len(each.token_ids)) == (each.value == "up") for each in ratings)
        return thumbs + sum(_pair_credit(each, self.longer_wins) for each in pairs if not each.tie)

    def majority_hits(self, ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> float:
        """How many judgements the constant rule predicts."""
        thumbs = sum(self.majority_up == (each.value == "up") for each in ratings)
        return thumbs + sum(self.majority_left == (each.chosen_side == "left") for each in pairs if not each.tie)

    def predicts_up(self, length: int) -> bool:
        return (length > self.length_threshold) == self.longer_is_up


def fit_baselines(ratings: Sequence[RatedResponse], pairs: Sequence[PreferencePair]) -> Baselines:
    """The best rules on these judgements; where two do equally well, the first of a fixed order."""
    threshold, longer_is_up = _best_threshold(ratings)
    pairs = [each for each in pairs if not each.tie]
    longer = sum(_pair_credit(each, longer_wins=True) for each in pairs)
    left = sum(each.chosen_side == "left" for each in pairs)
    up = sum(each.value == "up" for each in ratings)
    return Baselines(
        length_threshold=threshold,
        longer_is_up=longer_is_up,
        longer_wins=2 * longer >= len(pairs),
        majority_up=2 * up >= len(ratings),
        majority_left=2 * left >= len(pairs),
    )


def _best_threshold(ratings: Sequence[RatedResponse]) -> tuple[float, bool]:
    """Threshold and direction that predict most thumbs. One sweep: moving it past an answer changes that
    answer only.
    """
    ups_below = downs_below = 0
    ups = sum(each.value == "up" for each in ratings)
    best = max((ups, -1.0, True), (len(ratings) - ups, -1.0, False), key=lambda option: option[0])
    ordered = sorted((len(each.token_ids), each.value) for each in ratings)
    for (length, value), (following, _) in pairwise([*ordered, (-1, "up")]):
        ups_below += value == "up"
        downs_below += value == "down"
        if following == length:
            continue
        threshold = (length + max(following, length)) / 2
        hits = downs_below + ups - ups_below
        for option in ((hits, threshold, True), (len(ratings) - hits, threshold, False)):
            best = max(best, option, key=lambda each: each[0])
    return best[1], best[2]


def _pair_credit(pair: PreferencePair, longer_wins: bool) -> float:
    difference = len(pair.chosen_token_ids) - len(pair.rejected_token_ids)
    if difference == 0:
        return 0.5
    return float((difference > 0) == longer_wins)
