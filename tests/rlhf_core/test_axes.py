"""What a judgement says of helpful, honest and harmless."""

import pytest

from rlhf_core.axes import AXES, SPEAKS_OF, Axis, evidence, orders, remarks_say, thumb_says, ticked
from rlhf_core.records import (
    REASONS,
    REASONS_DOWN,
    REASONS_UP,
    REMARKS,
    PreferencePair,
    RatedResponse,
    RatingValue,
    Remark,
    RemarkKind,
)


def rated(value: RatingValue, *reasons: str) -> RatedResponse:
    return RatedResponse(
        event_id="e",
        rater="r",
        interaction_id="i",
        policy_version=1,
        prompt_token_ids=(1,),
        token_ids=(2,),
        value=value,
        prompt_key="k",
        reasons=reasons,
    )


def paired(*reasons: str, tie: bool = False) -> PreferencePair:
    return PreferencePair(
        event_id="e",
        rater="r",
        comparison_id="c",
        policy_version=1,
        prompt_token_ids=(1,),
        chosen_token_ids=(2,),
        rejected_token_ids=(3,),
        chosen_side="left",
        prompt_key="k",
        reasons=reasons,
        tie=tie,
    )


def test_the_table_speaks_of_known_reasons_with_the_polarity_of_the_thumb_that_offers_them() -> None:
    assert {axis for axis, _ in SPEAKS_OF.values()} == set(AXES)
    offered = {reason: good for reason, (_, good) in SPEAKS_OF.items() if reason in REASONS}
    assert all((reason in REASONS_UP) == good for reason, good in offered.items())
    assert all((reason in REASONS_DOWN) != good for reason, good in offered.items())


def test_it_speaks_of_all_that_a_report_or_a_review_can_say() -> None:
    remarks = {reason: good for reason, (_, good) in SPEAKS_OF.items() if reason not in REASONS}
    assert remarks.keys() == REMARKS - {"other"}
    assert all(good == reason.endswith(":ok") for reason, good in remarks.items())


@pytest.mark.parametrize(
    ("reasons", "axis", "said"),
    [
        (("helpful",), "helpful", True),
        (("too_long",), "helpful", False),
        (("helpful", "too_long"), "helpful", False),  # a fault outweighs praise
        (("tone",), "helpful", None),
        (("inaccurate", "harmful"), "honest", False),
        (("accuracy:ok", "toxicity:flag"), "harmless", False),
        (("toxicity:ok", "bias:flag"), "harmless", False),
        (("toxicity:ok", "unhelpfulness:flag"), "harmless", True),
        (("other",), "harmless", None),
        ((), "harmless", None),
    ],
)
def test_ticked_reasons_say_well_badly_or_nothing(reasons: tuple[str, ...], axis: Axis, said: bool | None) -> None:
    assert ticked(reasons, axis) is said


def test_silence_clears_of_faults_but_is_no_praise() -> None:
    assert [thumb_says(rated("up"), axis) for axis in AXES] == [None, True, True]
    assert [thumb_says(rated("down", "too_long"), axis) for axis in AXES] == [False, True, True]
    assert [thumb_says(rated("down"), axis) for axis in AXES] == [None, None, None]
    assert [thumb_says(rated("down", "harmful"), axis) for axis in AXES] == [None, True, False]


def test_a_choice_orders_its_answers_on_the_axes_of_its_reasons() -> None:
    assert [orders(paired("harmful"), axis) for axis in AXES] == [False, False, True]
    assert not orders(paired("harmful", tie=True), "harmless")


def test_evidence_counts_what_was_ticked_and_not_silence() -> None:
    ratings = [rated("up"), rated("up", "accurate"), rated("down", "inaccurate"), rated("down", "tone")]
    assert evidence(ratings, [paired("accurate"), paired()], [], "honest") == 3


def remark(kind: RemarkKind, answer: int, *reasons: str) -> Remark:
    return Remark(
        event_id="e",
        kind=kind,
        rater="r",
        interaction_id="i",
        policy_version=1,
        prompt_token_ids=(1,),
        token_ids=(answer,),
        prompt_key="k",
        reasons=reasons,
    )


def test_a_review_has_the_last_word_on_what_it_looked_at() -> None:
    remarks = [
        remark("report", 7, "toxic"),
        remark("report", 7, "other"),
        remark("review", 7, "toxicity:ok"),
        remark("report", 8, "toxic"),
        remark("review", 8, "accuracy:flag"),
    ]
    assert remarks_say(remarks, "harmless") == [None, None, True, False, None]
    assert remarks_say(remarks, "honest") == [None, None, None, None, False]
    assert evidence([], [], remarks, "harmless") == 2


@pytest.mark.parametrize("category", ["privacy", "illegal", "self_harm", "bias"])
def test_a_report_of_what_no_review_looked_at_stands_and_nothing_calls_that_answer_good(category: str) -> None:
    remarks = [remark("report", 7, category), remark("review", 7, "toxicity:ok", "unhelpfulness:ok")]
    assert remarks_say(remarks, "harmless") == [False, None]
    assert remarks_say(remarks, "helpful") == [None, True]


def test_a_review_that_finds_the_fault_takes_the_place_of_the_report() -> None:
    assert remarks_say([remark("report", 7, "bias"), remark("review", 7, "bias:flag")], "harmless") == [None, False]
