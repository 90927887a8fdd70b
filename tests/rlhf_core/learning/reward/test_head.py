"""The head as a smooth problem: optimal, repeatable, and the same under a change of the features' scale."""

import math

import pytest
import torch

from rlhf_core.errors import TrainingError
from rlhf_core.learning.preference_losses import LEFT, RIGHT, TIE
from rlhf_core.learning.reward.head import Features, HeadSolution, prepare, solve_head, solve_prepared
from rlhf_core.learning.reward.votes import Labels
from tests.rlhf_core.learning.reward.simulated_votes import labels_of


def judged(count: int = 80, seed: int = 0, width: int = 5) -> tuple[Features, Labels]:
    """People who look at the first feature alone, and never err."""
    generator = torch.Generator().manual_seed(seed)
    rated, left, right = (torch.randn(count, width, generator=generator).double() for _ in range(3))
    outcomes = torch.where(left[:, 0] > right[:, 0], LEFT, RIGHT)
    return Features(rated, left, right), labels_of(outcomes, up=rated[:, 0] > 0.3)


def solved(features: Features, labels: Labels, ridge: float = 1.0) -> HeadSolution:
    return solve_head(features, labels, ridge=ridge, label_smoothing=0.05, thumbs_weight=1.0)


def test_one_feature_and_two_thumbs_have_a_hand_worked_optimum() -> None:
    # Features -1 and 1 (mean 0, mean square 1), down and up, no smoothing: minimise
    # 2 log(1 + e^-v) + ridge v^2. At v = 1 its slope is -2 / (1 + e) + 2 ridge, so ridge = 1 / (1 + e)
    # puts the optimum there; b = 0 by symmetry.
    rated = torch.tensor([[-1.0], [1.0]])
    labels = labels_of(torch.zeros(0, dtype=torch.long), up=torch.tensor([False, True]))
    given = Features(rated, rated[:0], rated[:0])
    solution = solve_head(given, labels, ridge=1 / (1 + math.e), label_smoothing=0.0, thumbs_weight=1.0)
    assert float(solution.weight[0]) == pytest.approx(1.0, abs=1e-4)
    assert float(solution.scalars.threshold.detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(solution.scalars.log_alpha.detach()) == 0.0


def test_no_direction_leads_below_the_optimum() -> None:
    features, labels = judged()
    prepared = prepare(features, ridge=0.5)
    best, scalars = solve_prepared(prepared, labels, label_smoothing=0.0, thumbs_weight=1.0)
    weight, bias = prepared.head(best)
    standard = [(part - prepared.mean) * prepared.scale for part in features]
    v = (prepared.unmix @ best).requires_grad_()
    logits = scalars.log_alpha.exp().detach() * (standard[0] @ v) - scalars.threshold.detach()
    lead = torch.where(labels.up, logits, -logits)
    difference = (standard[1] - standard[2]) @ v
    signed = (
        torch.where(labels.outcomes == LEFT, difference, -difference)
        + torch.where(labels.outcomes == LEFT, 1.0, -1.0) * scalars.side_bias.detach()
    )
    loss = -torch.nn.functional.logsigmoid(lead).sum() - torch.nn.functional.logsigmoid(signed).sum()
    (gradient,) = torch.autograd.grad(loss + 0.5 * v.square().sum(), v)
    assert float(gradient.abs().max()) < 1e-3
    assert torch.allclose(features.rated @ weight + bias, standard[0] @ v, atol=1e-9)


def test_the_feature_that_people_judge_by_gets_the_weight() -> None:
    weight = solved(*judged()).weight
    assert float(weight[0]) > 3 * float(weight[1:].abs().max())


def test_scores_of_the_given_responses_have_mean_zero() -> None:
    features, labels = judged()
    solution = solved(features, labels)
    assert float((torch.cat(features) @ solution.weight + solution.bias).mean()) == pytest.approx(0.0, abs=1e-9)


def test_the_scale_of_features_changes_no_score() -> None:
    features, labels = judged()
    one, other = solved(features, labels), solved(Features(*(part * 50 for part in features)), labels)
    assert torch.allclose(one.weight, other.weight * 50, atol=1e-3)
    thresholds = [float(each.scalars.threshold.detach()) for each in (one, other)]
    assert thresholds[0] == pytest.approx(thresholds[1], abs=1e-3)


def test_more_ridge_gives_smaller_weights() -> None:
    assert float(solved(*judged(), 10.0).weight.norm()) < float(solved(*judged(), 1.0).weight.norm())


def test_alpha_is_learned_only_where_choices_fix_the_scale() -> None:
    features, labels = judged()
    thumbs_only = labels_of(torch.zeros(0, dtype=torch.long), up=labels.up)
    alone = solved(Features(features.rated, features.left[:0], features.right[:0]), thumbs_only)
    assert float(alone.scalars.log_alpha.detach()) == 0.0
    assert float(solved(features, labels).scalars.log_alpha.detach()) != 0.0
    tied = labels._replace(outcomes=torch.full_like(labels.outcomes, TIE))
    assert float(solved(features, tied).scalars.log_alpha.detach()) == 0.0


def test_ties_draw_scores_together() -> None:
    features, labels = judged()
    half = torch.arange(80) < 40
    tied = labels._replace(outcomes=torch.where(half, TIE, labels.outcomes))
    without = labels.weighted(torch.ones(80), (~half).double())
    assert float(solved(features, tied).weight.norm()) < float(solved(features, without).weight.norm())


def test_a_reversed_vote_is_the_opposite_vote() -> None:
    features, labels = judged()
    swapped = labels._replace(
        outcomes=1 - labels.outcomes,
        up=~labels.up,
        pair_weights=labels.pair_weights.flip(1),
        thumb_weights=labels.thumb_weights.flip(1),
    )
    assert torch.allclose(solved(features, labels).weight, solved(features, swapped).weight, atol=1e-9)


def test_the_same_features_give_the_same_head() -> None:
    one, other = solved(*judged()), solved(*judged())
    assert torch.equal(one.weight, other.weight)
    assert torch.equal(one.scalars.threshold, other.scalars.threshold)


def test_features_that_are_no_numbers_are_refused() -> None:
    features, labels = judged()
    prepared = prepare(features, 1.0)
    broken = prepared._replace(features=Features(*(part * float("nan") for part in prepared.features)))
    with pytest.raises(TrainingError, match="80 of 240 answers have no finite features"):
        prepare(features._replace(left=features.left / 0.0), 1.0)
    with pytest.raises(TrainingError, match="head has loss nan"):
        solve_prepared(broken, labels, label_smoothing=0.0, thumbs_weight=1.0)


def test_what_all_features_have_in_common_changes_no_score() -> None:
    features, labels = judged()
    moved = Features(*(part + torch.tensor([0.0, 10.0, 0.0, 0.0, 0.0]) for part in features))
    one, other = solved(features, labels), solved(moved, labels)
    assert torch.allclose(one.weight, other.weight, atol=1e-4)
