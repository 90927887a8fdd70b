"""When a PPO cycle ends before its last update: pure functions of what its rollouts measured."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from rlhf_core.learning.ppo_settings import PPOSettings

STOPS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "stop/kl_budget": "1 when responses are further than kl_budget from the reference",
        "stop/entropy": "1 when the entropy fell below least_entropy of the start's",
        "stop/end_rate": "1 when fewer than least_end_rate of the responses end",
        "stop/length": "1 when the mean length left the range around the reference's",
        "stop/judge": "1 when the score rises while the judge's falls",
    }
)
"""Each ends the cycle before the update that measured it learns anything."""


def check_stops(
    metrics: Mapping[str, float], start: Mapping[str, float], best_judge: float, settings: PPOSettings
) -> dict[str, float]:
    """1 or 0 for each of STOPS; `start` holds the first update's metrics.

    Where the first update's responses ended less often than `least_end_rate`, it is a share of their rate instead: a
    policy that still has to learn to end may train. `best_judge` is the judge's best mean score so far.
    """
    end_rate = 1.0 - metrics["objective/missing_end_rate"]
    started = 1.0 - start["objective/missing_end_rate"]
    least = settings.least_end_rate * (1.0 if started >= settings.least_end_rate else started)
    length = metrics["objective/response_length"]
    usual = settings.reference_length or start["objective/response_length"]
    judge = metrics.get("objective/judge_score")
    risen = metrics["objective/score"] > start["objective/score"]
    broken = {
        "stop/kl_budget": metrics["objective/kl_seq"] > settings.kl_budget,
        "stop/entropy": metrics["objective/entropy"] < settings.least_entropy * start["objective/entropy"],
        "stop/end_rate": end_rate < least,
        "stop/length": not settings.shortest * usual <= length <= settings.longest * usual,
        "stop/judge": judge is not None and risen and judge < best_judge - settings.judge_drop,
    }
    return {name: float(value) for name, value in broken.items()}


def say_stop(metrics: Mapping[str, float], settings: PPOSettings) -> str:
    """Which conditions ended the cycle, in words with their numbers; empty when none did."""
    end_rate = 1.0 - metrics["objective/missing_end_rate"]
    said = {
        "stop/kl_budget": f"{metrics['objective/kl_seq']:.3g} nats from the reference (budget {settings.kl_budget:g})",
        "stop/entropy": f"entropy {metrics['objective/entropy']:.3g} (below {settings.least_entropy:g} of the start's)",
        "stop/end_rate": f"{end_rate:.0%} of the responses end (least {settings.least_end_rate:.0%})",
        "stop/length": f"responses of {metrics['objective/response_length']:.3g} tokens on average",
        "stop/judge": f"the judge's score fell to {metrics.get('objective/judge_score', 0.0):.3g} while the score rose",
    }
    return "; ".join(text for name, text in said.items() if metrics[name])
