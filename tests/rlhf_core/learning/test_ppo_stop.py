"""The conditions that end a PPO cycle, one by one, on metrics made for them."""

from __future__ import annotations

import pytest

from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.ppo_stop import STOPS, check_stops, say_stop

START = {
    "objective/kl_seq": 0.0,
    "objective/entropy": 2.0,
    "objective/missing_end_rate": 0.1,
    "objective/response_length": 20.0,
    "objective/score": 0.0,
    "objective/judge_score": 0.0,
}


@pytest.mark.parametrize(
    ("name", "measured", "still_fine", "stops"),
    [
        ("stop/kl_budget", "objective/kl_seq", 10.0, 10.1),
        ("stop/entropy", "objective/entropy", 0.6, 0.59),  # 30 % of 2 nats
        ("stop/end_rate", "objective/missing_end_rate", 0.2, 0.21),  # at least 80 % end
        ("stop/length", "objective/response_length", 10.0, 9.9),  # half of 20
        ("stop/length", "objective/response_length", 40.0, 40.1),  # twice 20
    ],
)
def test_each_condition_stops_alone_at_its_bound(name: str, measured: str, still_fine: float, stops: float) -> None:
    settings = PPOSettings()
    fine = check_stops(START | {measured: still_fine}, START, 0.0, settings)
    assert fine == dict.fromkeys(STOPS, 0.0)
    assert say_stop(START | {measured: still_fine} | fine, settings) == ""
    broken = check_stops(START | {measured: stops}, START, 0.0, settings)
    assert broken == dict.fromkeys(STOPS, 0.0) | {name: 1.0}
    assert say_stop(START | {measured: stops} | broken, settings)


def test_a_policy_that_ended_less_often_is_measured_against_its_own_rate() -> None:
    # Half of the responses ended at first, so it stops below .8 * .5 = .4, and not at once.
    start = START | {"objective/missing_end_rate": 0.5}
    assert check_stops(start, start, 0.0, PPOSettings())["stop/end_rate"] == 0.0
    worse = {"objective/missing_end_rate": 0.61}
    assert check_stops(start | worse, start, 0.0, PPOSettings())["stop/end_rate"] == 1.0


def test_a_known_length_of_the_reference_is_what_counts() -> None:
    settings = PPOSettings(reference_length=50.0)
    assert check_stops(START, START, 0.0, settings)["stop/length"] == 1.0  # 20 is below half of 50


def test_a_falling_judge_stops_only_while_the_score_rises() -> None:
    # Best .4, now .1: .3 below, more than .25.
    judged = {"objective/judge_score": 0.1}
    assert check_stops(START | judged, START, 0.4, PPOSettings())["stop/judge"] == 0.0
    risen = judged | {"objective/score": 0.5}
    assert check_stops(START | risen, START, 0.4, PPOSettings())["stop/judge"] == 1.0
    assert check_stops(START | risen, START, 0.3, PPOSettings())["stop/judge"] == 0.0


def test_conditions_can_be_turned_off() -> None:
    settings = PPOSettings(kl_budget=1e9, least_entropy=0.0, least_end_rate=0.0, shortest=0.0, longest=1e9)
    wild = START | {
        "objective/kl_seq": 1e3,
        "objective/entropy": 0.0,
        "objective/missing_end_rate": 1.0,
        "objective/response_length": 1e4,
    }
    assert check_stops(wild, START, 0.0, settings) == dict.fromkeys(STOPS, 0.0)


def test_the_reasons_are_told_with_their_numbers() -> None:
    worse = START | {"objective/kl_seq": 12.0, "objective/missing_end_rate": 0.5}
    stops = check_stops(worse, START, 0.0, PPOSettings())
    told = say_stop(worse | stops, PPOSettings())
    assert told == "12 nats from the reference (budget 10); 50% of the responses end (least 80%)"
