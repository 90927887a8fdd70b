"""The head as a convex problem: optimal, repeatable, and the same under a change of the features' scale."""

import math

import pytest
import torch

from rlhf_core.learning.reward_head import Features, HeadSolution, solve_head


def features(count: int = 80, seed: int = 0, width: int = 5) -> Features:
    generator = torch.Generator().manual_seed(seed)
    rated, chosen, rejected = (torch.randn(count, width, generator=generator) for _ in range(3))
    swap = (chosen[:, 0] < rejected[:, 0])[:, None]
    chosen, rejected = torch.where(swap, rejected, chosen), torch.where(swap, chosen, rejected)
    return Features(rated, rated[:, 0] > 0.3, chosen, rejected)


def solved(given: Features, ridge: float = 1.0) -> HeadSolution:
    return solve_head(given, ridge=ridge, label_smoothing=0.05, thumbs_weight=1.0)


def test_one_feature_and_two_thumbs_have_a_hand_worked_optimum() -> None:
    # Features -1 and 1 (mean 0, mean square 1), down and up, no smoothing: minimise
    # 2 log(1 + e^-v) + ridge v^2. At v = 1 its slope is -2 / (1 + e) + 2 ridge, so ridge = 1 / (1 + e)
    # puts the optimum there; b = 0 by symmetry.
    rated = torch.tensor([[-1.0], [1.0]])
    given = Features(rated, torch.tensor([False, True]), rated[:0], rated[:0])
    solution = solve_head(given, ridge=1 / (1 + math.e), label_smoothing=0.0, thumbs_weight=1.0)
    assert float(solution.weight[0]) == pytest.approx(1.0, abs=1e-4)
    assert float(solution.threshold) == pytest.approx(0.0, abs=1e-6)
    assert float(solution.log_alpha) == 0.0


def test_the_feature_that_people_judge_by_gets_the_weight() -> None:
    weight = solved(features()).weight
    assert float(weight[0]) > 3 * float(weight[1:].abs().max())


def test_scores_of_the_given_responses_have_mean_zero() -> None:
    given = features()
    solution = solved(given)
    every = torch.cat([given.rated, given.chosen, given.rejected]).double()
    assert float((every @ solution.weight + solution.bias).mean()) == pytest.approx(0.0, abs=1e-9)


def test_the_scale_of_features_changes_no_score() -> None:
    given = features()
    scaled = Features(given.rated * 50, given.up, given.chosen * 50, given.rejected * 50)
    one, other = solved(given), solved(scaled)
    assert torch.allclose(one.weight, other.weight * 50, atol=1e-4)
    assert float(one.threshold) == pytest.approx(float(other.threshold), abs=1e-4)


def test_more_ridge_gives_smaller_weights() -> None:
    assert float(solved(features(), 10.0).weight.norm()) < float(solved(features(), 1.0).weight.norm())


def test_alpha_is_learned_only_where_pairs_fix_the_scale() -> None:
    given = features()
    thumbs_only = Features(given.rated, given.up, given.chosen[:0], given.rejected[:0])
    assert float(solved(thumbs_only).log_alpha) == 0.0
    assert float(solved(given).log_alpha) != 0.0


def test_the_same_features_give_the_same_head() -> None:
    assert all(torch.equal(one, other) for one, other in zip(solved(features()), solved(features()), strict=True))
