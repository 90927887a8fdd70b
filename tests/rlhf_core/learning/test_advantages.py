"""Rewards, GAE and whitening against numbers worked by hand and a second implementation."""

import numpy as np
import pytest
import torch

from rlhf_core.learning.advantages import (
    explained_variance,
    gae,
    shape_scores,
    token_rewards,
    whiten_advantages,
    whiten_rewards,
)
from rlhf_core.learning.masked import masked_mean, masked_var

REWARDS = torch.tensor([[0.0, 0.0, 1.0]])
VALUES = torch.tensor([[0.5, 0.4, 0.2]])
ALL = torch.ones(1, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("length", "ended", "expected"),
    [
        pytest.param(1, True, [2.9, 0.0, 0.0, 0.0], id="end token first"),
        pytest.param(2, True, [-0.1, 2.9, 0.0, 0.0], id="end token in the middle"),
        pytest.param(4, True, [-0.1, -0.1, -0.1, 2.9], id="end token in the last slot"),
        pytest.param(3, False, [-0.1, -0.1, 1.9, 0.0], id="no end token"),
        pytest.param(4, False, [-0.1, -0.1, -0.1, 1.9], id="no end token, in the last slot"),
    ],
)
def test_the_score_lands_on_the_last_token_and_the_penalty_on_each(
    length: int, ended: bool, expected: list[float]
) -> None:
    # Score 3, log ratio .2 per token, kl_coef .5: -.1 each; the last one has 3 - .1 = 2.9, or 1 less without an end.
    mask = (torch.arange(4) < length)[None]
    scores = shape_scores(torch.tensor([3.0]), torch.tensor([ended]), score_clip=5.0, missing_end_penalty=1.0)
    logprobs = torch.where(mask, torch.full((1, 4), -1.0), torch.nan)
    rewards = token_rewards(scores, logprobs, torch.full((1, 4), -1.2), mask, kl_coef=0.5)
    torch.testing.assert_close(rewards, torch.tensor([expected]))


def test_rewards_sum_to_score_less_kl_and_carry_no_gradient() -> None:
    draw = torch.Generator().manual_seed(0)
    logprobs = torch.randn(6, 5, generator=draw).requires_grad_()
    ref_logprobs, scores = torch.randn(6, 5, generator=draw), torch.randn(6, generator=draw)
    mask = torch.arange(5) < torch.tensor([1, 2, 3, 4, 5, 5])[:, None]
    rewards = token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=0.3)
    kl = torch.where(mask, logprobs - ref_logprobs, torch.zeros(())).sum(-1)
    torch.testing.assert_close(rewards.sum(-1) + 0.3 * kl.detach(), scores)
    assert not rewards.requires_grad


def test_scores_are_clipped_before_the_penalty() -> None:
    scores = torch.tensor([9.0, -9.0, -9.0, 1.0])
    ended = torch.tensor([True, True, False, False])
    shaped = shape_scores(scores, ended, score_clip=5.0, missing_end_penalty=1.0)
    assert shaped.tolist() == [5.0, -5.0, -6.0, 0.0]


def test_a_response_without_an_end_may_be_replaced_instead() -> None:
    # Whatever it said, it scores minus the penalty; ended ones are clipped and kept.
    scores, ended = torch.tensor([9.0, 2.0, -9.0]), torch.tensor([True, False, False])
    shaped = shape_scores(scores, ended, score_clip=5.0, missing_end_penalty=1.0, missing_end="replace")
    assert shaped.tolist() == [5.0, -1.0, -1.0]


def test_whitened_rewards_have_unit_variance_and_the_mean_that_they_had() -> None:
    # [1, 2, 3, 4]: mean 2.5, so 2.5 -+ 1.34164 and 2.5 -+ .44721. A shifted mean would be 0.
    rewards = torch.tensor([[1.0, 2.0, torch.nan], [3.0, 4.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    expected = torch.tensor([[1.15836, 2.05279, 0.0], [2.94721, 3.84164, 0.0]])
    torch.testing.assert_close(whiten_rewards(rewards, mask), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("gae_lambda", "expected"), [(0.0, [-0.1, -0.2, 0.8]), (0.95, [0.432, 0.56, 0.8]), (1.0, [0.5, 0.6, 0.8])]
)
def test_gae_matches_the_worked_vector(gae_lambda: float, expected: list[float]) -> None:
    # deltas: .4 - .5 = -.1; .2 - .4 = -.2; 1 - .2 = .8. Lambda .95: -.2 + .95 * .8 = .56; -.1 + .95 * .56 = .432.
    # Lambda 1 is the plain return 1 minus the value; lambda 0 the deltas themselves.
    result = gae(REWARDS, VALUES, ALL, gamma=1.0, gae_lambda=gae_lambda)
    torch.testing.assert_close(result.advantages, torch.tensor([expected]))
    torch.testing.assert_close(result.returns, torch.tensor([expected]) + VALUES)


def test_gae_agrees_with_a_loop_over_each_response_alone() -> None:
    draw = torch.Generator().manual_seed(5)
    rewards, values = torch.randn(7, 6, generator=draw).double(), torch.randn(7, 6, generator=draw).double()
    lengths = [6, 1, 2, 3, 4, 5, 6]
    mask = torch.arange(6) < torch.tensor(lengths)[:, None]
    ours = gae(rewards.where(mask, torch.nan), values.where(mask, torch.nan), mask, gamma=0.9, gae_lambda=0.8)
    for row, length in enumerate(lengths):
        r, v = rewards[row, :length].numpy(), np.append(values[row, :length].numpy(), 0.0)
        deltas = r + 0.9 * v[1:] - v[:-1]
        expected = [sum((0.9 * 0.8) ** (k - t) * deltas[k] for k in range(t, length)) for t in range(length)]
        np.testing.assert_allclose(ours.advantages[row, :length].numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(ours.returns[row, :length].numpy(), np.array(expected) + v[:-1], atol=1e-12)
    assert (ours.advantages[~mask] == 0).all()
    assert (ours.returns[~mask] == 0).all()


def test_whitened_advantages_match_the_worked_vector() -> None:
    # [1, 2, 3, 4]: mean 2.5, population variance 1.25, so +-1.5 / 1.118034 = +-1.34164 and +-.5 / 1.118034 = +-.44721.
    advantages = torch.tensor([[1.0, 2.0, torch.nan], [3.0, 4.0, 99.0]])
    mask = torch.tensor([[True, True, False], [True, True, False]])
    whitened = whiten_advantages(advantages, mask)
    expected = torch.tensor([[-1.34164, -0.44721, 0.0], [0.44721, 1.34164, 0.0]])
    torch.testing.assert_close(whitened, expected, atol=1e-5, rtol=0)
    assert float(masked_mean(whitened, mask)) == pytest.approx(0.0, abs=1e-6)
    assert float(masked_var(whitened, mask)) == pytest.approx(1.0, abs=1e-6)


def test_whitening_does_not_blow_up_noise() -> None:
    # Standard deviation 1e-5 is below the floor of 1e-3, so the result is 1e-5 / 1e-3 = .01 wide instead of 1.
    noise = torch.tensor([[1.00001, 0.99999]], dtype=torch.float64)
    whitened = whiten_advantages(noise, torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(whitened, torch.tensor([[0.01, -0.01]], dtype=torch.float64), atol=1e-9, rtol=0)


def test_explained_variance_of_perfect_constant_and_opposite_values() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0]]), ALL
    assert float(explained_variance(returns, returns, mask)) == pytest.approx(1.0)
    assert float(explained_variance(torch.full((1, 3), 7.0), returns, mask)) == pytest.approx(0.0)
    # returns - values = [2, 4, 6]: four times the variance.
    assert float(explained_variance(-returns, returns, mask)) == pytest.approx(1 - 4)
    assert float(explained_variance(returns, torch.ones(1, 3), mask)) == 0.0
