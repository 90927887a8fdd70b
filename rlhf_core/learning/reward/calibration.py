"""Whether a reward model's probabilities of choices are true: temperature, calibration error, reliability bins.

Source: design notes 2.2(e). A temperature above 1 says that held-out choices found the scores too sure of themselves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import msgspec
import torch
from torch import Tensor

from rlhf_core.learning.preference_losses import LEFT, TIE, pair_logprobs, pair_losses

BINS: Final = 10
BOOTSTRAPS: Final = 200
LEAST_CHOICES: Final = 20
"""Held-out choices below which a temperature would be noise, and stays 1."""
SEARCH_STEPS: Final = 50
COLDEST, HOTTEST = math.log(0.2), math.log(20.0)


class ReliabilityBin(msgspec.Struct, frozen=True):
    """Predictions of about the same confidence, and how often they came true."""

    confidence: float
    """Mean of max(p, 1 - p)."""
    accuracy: float
    n: int


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How true probabilities of decisive choices are. All but the temperature is measured on choices that it was not
    fitted on: two halves, each with the other's temperature.
    """

    temperature: float = 1.0
    n: int = 0
    ece: float = 0.0
    """Expected calibration error over BINS bins of equal mass, ordered by |p - 0.5|."""
    ece_low: float = 0.0
    ece_high: float = 0.0
    """95 % bootstrap interval; resampling adds noise to the bins, so a small error lies at its lower end."""
    brier: float = 0.0
    nll: float = 0.0
    """Nats per choice."""
    bins: tuple[ReliabilityBin, ...] = ()


def fit_temperature(logits: Tensor, outcomes: Tensor, eta: Tensor, bias: float = 0.0) -> float:
    """tau that minimises the negative log-likelihood of `outcomes` [B] given logits / tau + bias [B], eta as it is.

    Searched by golden section over log tau, where the loss of logistic choices falls and then rises.
    """

    def loss(log_tau: float) -> float:
        return float(pair_losses(logits.double() / math.exp(log_tau) + bias, outcomes, eta.double()).sum())

    low, high, ratio = COLDEST, HOTTEST, (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(SEARCH_STEPS):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, right) if loss(left) <= loss(right) else (left, high)
    return math.exp((low + high) / 2.0)


def calibrate(
    logits: Tensor, outcomes: Tensor, eta: Tensor, groups: Sequence[str], seed: int = 0, *, bias: float = 0.0
) -> Calibration:
    """Temperature and calibration of held-out choices: `logits` [B] of left as fitted, `groups` their prompts.

    `bias` towards the left side is added to a logit after it was cooled: how sure people are has no part in it.

    The halves that test each other's temperature share no prompt. With few choices the temperature is 1 throughout.
    """
    decisive = outcomes != TIE
    if int(decisive.sum()) < LEAST_CHOICES:
        return measure(left_probability(logits + bias, eta)[decisive], (outcomes == LEFT)[decisive], 1.0, seed)
    half = _halves(groups)
    cooled = logits.double().clone()
    for each in (half, ~half):
        if bool((decisive & ~each).any()):
            cooled[each] /= fit_temperature(logits[~each], outcomes[~each], eta, bias)
    probabilities = left_probability(cooled + bias, eta)
    tau = fit_temperature(logits, outcomes, eta, bias)
    return measure(probabilities[decisive], (outcomes == LEFT)[decisive], tau, seed)


def measure(probabilities: Tensor, happened: Tensor, temperature: float = 1.0, seed: int = 0) -> Calibration:
    """Calibration of `probabilities` [B] of events of which some `happened` [B] bool."""
    n = len(probabilities)
    if not n:
        return Calibration(temperature=temperature)
    p, y = probabilities.double(), happened.double()
    ece, bins = calibration_error(p, happened)
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randint(n, (n,), generator=generator) for _ in range(BOOTSTRAPS))
    spread = torch.tensor([calibration_error(p[each], happened[each])[0] for each in drawn])
    low, high = torch.quantile(spread, torch.tensor([0.025, 0.975])).tolist()
    likely = torch.where(happened, p, 1.0 - p).clamp_min(1e-12)
    return Calibration(
        temperature=temperature,
        n=n,
        ece=ece,
        ece_low=low,
        ece_high=high,
        brier=float((p - y).square().mean()),
        nll=float(-likely.log().mean()),
        bins=bins,
    )


def calibration_error(probabilities: Tensor, happened: Tensor) -> tuple[float, tuple[ReliabilityBin, ...]]:
    """Mean over predictions of |accuracy - confidence| of their bin, and the bins."""
    confidence = torch.maximum(probabilities, 1.0 - probabilities)
    right = ((probabilities > 0.5) == happened).to(confidence)
    order = confidence.argsort(stable=True)
    bins = tuple(
        ReliabilityBin(float(confidence[part].mean()), float(right[part].mean()), len(part))
        for part in order.tensor_split(min(BINS, len(order)))
    )
    error = sum(abs(each.accuracy - each.confidence) * each.n for each in bins)
    return error / len(order), bins


def left_probability(logits: Tensor, eta: Tensor) -> Tensor:
    """P(left | not a tie) [B] of choices with these `logits` [B]."""
    logprobs = pair_logprobs(logits.double(), eta.double())
    return torch.sigmoid(logprobs[:, 0] - logprobs[:, 1])


def _halves(groups: Sequence[str]) -> Tensor:
    """[B] bool: every second distinct group."""
    number = {group: at for at, group in enumerate(dict.fromkeys(groups))}
    return torch.tensor([number[group] % 2 == 0 for group in groups], dtype=torch.bool)
