"""The length rule and the majority rule against hand-worked cases."""

from rlhf_core.baselines import Baselines, fit_baselines
from rlhf_core.records import PreferencePair, RatedResponse, RatingValue, Side


def rated(length: int, value: RatingValue) -> RatedResponse:
    return RatedResponse(
        event_id="e",
        rater="r",
        interaction_id="i",
        policy_version=1,
        prompt_token_ids=(1,),
        token_ids=(2,) * length,
        value=value,
        prompt_key="k",
    )


def paired(chosen: int, rejected: int, side: Side = "left") -> PreferencePair:
    return PreferencePair(
        event_id="e",
        rater="r",
        comparison_id="c",
        policy_version=1,
        prompt_token_ids=(1,),
        chosen_token_ids=(2,) * chosen,
        rejected_token_ids=(2,) * rejected,
        chosen_side=side,
        prompt_key="k",
    )


def test_the_length_threshold_is_where_most_thumbs_are_predicted() -> None:
    # Lengths 2 down, 4 down, 6 up, 8 down, 10 up. "Longer than 5 is up" gets all but 8 right: 4 of 5.
    thumbs = [rated(2, "down"), rated(10, "up"), rated(4, "down"), rated(8, "down"), rated(6, "up")]
    rules = fit_baselines(thumbs, [])
    assert (rules.length_threshold, rules.longer_is_up) == (5.0, True)
    assert rules.length_hits(thumbs, []) == 4


def test_shorter_may_be_better() -> None:
    thumbs = [rated(3, "up"), rated(4, "up"), rated(9, "down"), rated(12, "down")]
    rules = fit_baselines(thumbs, [])
    assert (rules.length_threshold, rules.longer_is_up) == (6.5, False)
    assert rules.length_hits(thumbs, []) == 4


def test_thumbs_of_one_length_leave_only_the_majority() -> None:
    thumbs = [rated(5, "up"), rated(5, "down"), rated(5, "down")]
    rules = fit_baselines(thumbs, [])
    assert rules.length_hits(thumbs, []) == 2
    assert not rules.predicts_up(5)
    assert not rules.predicts_up(50)


def test_pairs_teach_whether_longer_or_shorter_wins_and_equal_lengths_count_half() -> None:
    # Chosen is shorter in two, longer in one, as long in one: shorter wins, with 2 + 0.5 of 4 right.
    pairs = [paired(2, 5), paired(3, 4), paired(9, 1), paired(6, 6)]
    rules = fit_baselines([], pairs)
    assert rules.longer_wins is False
    assert rules.length_hits([], pairs) == 2.5


def test_the_majority_rule_repeats_the_most_frequent_thumb_and_side() -> None:
    thumbs = [rated(1, "down"), rated(2, "down"), rated(3, "up")]
    pairs = [paired(1, 2, "right"), paired(1, 2, "right"), paired(1, 2, "left")]
    rules = fit_baselines(thumbs, pairs)
    assert (rules.majority_up, rules.majority_left) == (False, False)
    assert rules.majority_hits(thumbs, pairs) == 4


def test_rules_are_judged_on_other_judgements_than_they_were_fitted_on() -> None:
    rules = fit_baselines([rated(2, "down"), rated(8, "up")], [])
    assert rules.length_hits([rated(9, "down"), rated(1, "down"), rated(7, "up")], []) == 2


def test_rules_without_any_judgement_still_exist() -> None:
    assert fit_baselines([], []).length_hits([], []) == Baselines().majority_hits([], []) == 0
