"""The gate's decision as a table: each failing number alone rejects, none failing accepts."""

import msgspec
import pytest

from rlhf_core.gate_rules import INSUFFICIENT, GateNumbers, GateSettings, decide
from rlhf_core.records import GateReport

GOOD = GateNumbers(
    reward_accuracy=0.9,
    judge_accuracy=0.85,
    judge_length_accuracy=0.6,
    length_accuracy=0.6,
    feedback=40,
    wins=48.0,
    prompts=64,
    ref_kl=4.0,
    end_rate=1.0,
    live_end_rate=0.98,
    repetition=0.0,
    live_repetition=0.0,
    length=30.0,
    live_length=28.0,
    score=0.8,
    live_score=0.1,
)
SETTINGS = GateSettings()
CHECKS = ("reward_accuracy", "judge_accuracy", "win_rate", "ref_kl", "end_rate", "repetition", "length_ratio")


def decided(**changes: float) -> GateReport:
    numbers = msgspec.structs.replace(GOOD, **changes)
    return decide(numbers, SETTINGS, checkpoint_id="policy-1", parent_version=3, now=5.0)


def test_a_candidate_that_passes_every_check_is_accepted() -> None:
    report = decided()
    assert report.accepted
    assert report.reasons == ()
    assert (report.checkpoint_id, report.parent_version, report.created_at) == ("policy-1", 3, 5.0)


@pytest.mark.parametrize(
    ("failing", "changes"),
    [
        ("reward_accuracy", {"reward_accuracy": 0.59}),
        ("reward_accuracy", {"reward_accuracy": 0.6}),  # no better than length is not better
        ("judge_accuracy", {"judge_accuracy": 0.6}),
        ("win_rate", {"wins": 31.5}),
        ("win_rate", {"prompts": 9, "wins": 9.0}),
        ("win_rate", {"prompts": 0, "wins": 0.0}),
        ("ref_kl", {"ref_kl": 10.01}),
        ("end_rate", {"end_rate": 0.94}),
        ("repetition", {"repetition": 0.03}),
        ("length_ratio", {"length": 57.0}),
        ("length_ratio", {"length": 13.0}),
        ("length_ratio", {"live_length": 0.0}),
    ],
)
def test_each_failing_check_rejects_by_itself_and_gives_its_reason(failing: str, changes: dict[str, float]) -> None:
    report = decided(**changes)
    assert not report.accepted
    assert [check.name for check in report.checks if not check.passed] == [failing]
    assert len(report.reasons) == 1


@pytest.mark.parametrize("feedback", [0, 9])
def test_with_too_few_held_out_judgements_neither_model_is_trusted(feedback: int) -> None:
    report = decided(feedback=feedback)
    assert [check.name for check in report.checks if not check.passed] == ["reward_accuracy", "judge_accuracy"]
    assert all(INSUFFICIENT in reason for reason in report.reasons)


@pytest.mark.parametrize(
    "changes",
    [
        {"wins": 32.0},  # 32 of 64 is the bound itself
        {"ref_kl": 10.0},
        {"end_rate": 0.95},
        {"repetition": 0.02},
        {"length": 56.0},
        {"length": 14.0},
        {"feedback": 10},
        {"prompts": 10, "wins": 5.0},
    ],
)
def test_a_number_on_its_bound_passes(changes: dict[str, float]) -> None:
    assert decided(**changes).accepted


def test_a_candidate_may_repeat_itself_as_much_as_the_live_policy_does() -> None:
    assert decided(repetition=0.1, live_repetition=0.1).accepted
    assert not decided(repetition=0.11, live_repetition=0.1).accepted


def test_every_check_is_listed_with_a_reason_whether_it_passed_or_not() -> None:
    for report in (decided(), decided(wins=0.0, ref_kl=99.0)):
        assert tuple(check.name for check in report.checks) == CHECKS
        assert all(check.reason for check in report.checks)


def test_a_rejection_for_several_causes_names_them_all() -> None:
    assert [check.name for check in decided(wins=0.0, ref_kl=99.0, end_rate=0.5).checks if not check.passed] == [
        "win_rate",
        "ref_kl",
        "end_rate",
    ]


def test_a_report_holds_every_number_that_was_measured() -> None:
    metrics = decided().metrics
    assert {name: metrics[name] for name in GateNumbers.__struct_fields__} == {
        name: float(getattr(GOOD, name)) for name in GateNumbers.__struct_fields__
    }


def test_the_win_rate_comes_with_its_wilson_interval() -> None:
    # 48 of 64 with z = 1.96: centre (0.75 + 0.030012) / 1.060023 = 0.735844,
    # half 1.96 sqrt(0.75 * 0.25 / 64 + 3.841459 / 16384) / 1.060023 = 1.96 * 0.056251 / 1.060023 = 0.104007
    metrics = decided().metrics
    assert metrics["win_rate"] == 0.75
    assert metrics["win_rate_low"] == pytest.approx(0.631837, abs=1e-5)
    assert metrics["win_rate_high"] == pytest.approx(0.839851, abs=1e-5)


def test_too_little_feedback_is_called_by_its_name() -> None:
    assert decided(feedback=3).reasons == (
        f"{INSUFFICIENT}: 3 held-out judgements to test the reward model on, 10 are needed",
        f"{INSUFFICIENT}: 3 held-out judgements to test the judge model on, 10 are needed",
    )
    assert decided(prompts=4, wins=4.0).reasons == (
        f"{INSUFFICIENT}: 4 held-out prompts to compare answers on, 10 are needed",
    )


def test_a_reason_is_a_sentence_with_both_numbers() -> None:
    assert decided(ref_kl=12.345).reasons == (
        "the candidate is 12.35 nats per answer from the supervised policy, the budget is 10.00",
    )


def test_a_report_survives_being_stored() -> None:
    report = decided(ref_kl=99.0)
    assert msgspec.json.decode(msgspec.json.encode(report), type=GateReport) == report
