"""Draws against running sums worked by hand, and against torch's distribution."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from rlhf_core.models import kernels
from rlhf_core.models.kernels.crew import Words
from tests.rlhf_core.models.kernels.arrays import ALONE, Array, array, close, noise

BELOW_ONE = 1.0 - 2.0**-53
PROBS = (0.4, 0.3, 0.15, 0.1, 0.05)


def drawn(logits: Array, temperatures: Any, numbers: Any, crew: Words = ALONE) -> tuple[list[int], Array]:
    """Tokens and logprobs of the rows; a single temperature or number is for all."""
    rows = logits.shape[0]
    tokens, logprobs = np.empty(rows, dtype=np.int64), np.empty(rows, dtype=np.float32)
    by_row = np.broadcast_to(np.asarray(temperatures, dtype=np.float32), rows).copy()
    kernels.draw(logits, by_row, np.broadcast_to(np.asarray(numbers, float), rows).copy(), tokens, logprobs, crew)
    return tokens.tolist(), logprobs


def test_a_token_is_the_first_at_which_the_running_sum_passes_the_number() -> None:
    # Running sums .4, .7, .85, .95, 1.
    numbers = [0.0, 0.39, 0.41, 0.69, 0.71, 0.86, 0.94, 0.96, BELOW_ONE]
    tokens, logprobs = drawn(np.tile(np.log(array(*PROBS)) + 3, (9, 1)).astype(np.float32), 1.0, numbers)
    assert tokens == [0, 0, 1, 1, 2, 3, 3, 4, 4]
    assert logprobs == close(np.log([PROBS[token] for token in tokens]), 1e-6)


def test_a_temperature_divides_the_logits() -> None:
    # At 0.5 the shares are squares: .16, .09, .0225, .01, .0025 of .285, running sums .561, .877, .956, .991, 1.
    numbers = [0.55, 0.57, 0.87, 0.88, 0.95, 0.96, 0.99, 0.995]
    tokens, logprobs = drawn(np.tile(np.log(array(*PROBS)), (8, 1)).astype(np.float32), 0.5, numbers)
    assert tokens == [0, 1, 1, 2, 2, 3, 3, 4]
    assert logprobs == close(np.log([PROBS[token] ** 2 / 0.285 for token in tokens]))


@pytest.mark.parametrize(("first", "second"), [(0, 1), (3, 255), (255, 256), (300, 699)])
def test_greedy_takes_the_first_of_equal_maxima_whatever_the_number(first: int, second: int) -> None:
    logits = noise(3, 700)
    logits[:, [first, second]] = 9.0
    tokens, logprobs = drawn(logits, 0.0, [0.0, 0.5, BELOW_ONE])
    assert tokens == [first] * 3
    # The logprob is the policy's at temperature 1.
    assert logprobs == close(torch.from_numpy(logits).log_softmax(-1)[:, first].numpy())


@pytest.mark.parametrize("vocabulary", [2, 5, 256, 257, 700, 1024])
@pytest.mark.parametrize("number", [0.0, 0.5, BELOW_ONE])
def test_a_token_that_is_ruled_out_is_never_drawn(vocabulary: int, number: float) -> None:
    logits, dice = noise(300, vocabulary) * 3, np.random.default_rng(vocabulary)
    for row in logits:
        # One is left at least; in half of the rows, none at either end, whole blocks of them included.
        low, high = sorted(dice.integers(0, vocabulary, 2))
        row[:low] = row[high + 1 :] = -np.inf
        row[dice.random(vocabulary) < 0.3] = -np.inf
        row[low] = 0.0
    tokens, logprobs = drawn(logits, 1.0, number)
    assert np.isfinite(logits[range(300), tokens]).all()
    assert np.isfinite(logprobs).all()


@pytest.mark.parametrize("at", [0, 255, 256, 699])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_with_a_logit_that_is_not_a_number_or_infinite_draws_nothing(
    temperature: float, bad: float, at: int
) -> None:
    logits = noise(3, 700)
    logits[1, at] = bad
    tokens, _ = drawn(logits, temperature, 0.5)
    assert tokens[1] == -1
    assert tokens[::2] == drawn(logits[::2].copy(), temperature, 0.5)[0]


def test_a_row_without_any_token_draws_nothing() -> None:
    assert drawn(np.full((1, 300), -np.inf, dtype=np.float32), 1.0, 0.5)[0] == [-1]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("vocabulary", [1, 5, 255, 256, 257, 1000, 4099])
def test_draws_invert_the_distribution_that_torch_computes(
    vocabulary: int, threads: int, crews: dict[int, Words]
) -> None:
    logits, dice = noise(60, vocabulary) * 3, np.random.default_rng(1)
    temperatures, numbers = np.tile(array(0.3, 1.0, 2.0), 20), dice.random(60)
    tokens, logprobs = drawn(logits, temperatures, numbers, crews[threads])
    expected = (torch.from_numpy(logits).double() / torch.from_numpy(temperatures)[:, None]).log_softmax(-1)
    sums = np.pad(expected.exp().cumsum(-1).numpy(), ((0, 0), (1, 0)))
    for row, (token, number) in enumerate(zip(tokens, numbers, strict=True)):
        assert sums[row, token] - 1e-6 <= number <= sums[row, token + 1] + 1e-6
    assert logprobs == close(expected.numpy()[range(60), tokens])


def test_tokens_come_as_often_as_their_probabilities_say() -> None:
    logits = noise(300, seed=3) * 2
    numbers = np.random.default_rng(4).random(40_000)
    counts = Counter(drawn(np.tile(logits, (40_000, 1)), 1.0, numbers)[0])
    expected = 40_000 * torch.from_numpy(logits).double().softmax(-1).numpy()
    likely = [token for token in range(300) if expected[token] >= 20]
    distance = sum((counts[token] - expected[token]) ** 2 / expected[token] for token in likely)
    rest = 40_000 - sum(expected[token] for token in likely)
    distance += (40_000 - sum(counts[token] for token in likely) - rest) ** 2 / rest
    # Chi-square of k degrees has mean k and variance 2k; four deviations.
    assert distance < len(likely) + 4 * math.sqrt(2 * len(likely))


def test_a_row_may_be_left_out() -> None:
    logits = np.tile(np.log(array(*PROBS)), (3, 1)).astype(np.float32)
    logits[1] = math.nan
    tokens, _ = drawn(logits, [1.0, kernels.LEFT_OUT, 1.0], [0.99, 0.5, 0.0])
    assert (tokens[0], tokens[2]) == (4, 0)
    assert tokens[1] >= 0
