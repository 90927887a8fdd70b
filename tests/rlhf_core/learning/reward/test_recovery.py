"""Known scores come back from judgements: their order, and with ties modelled as ties also their scale."""

import pytest
import torch
from torch import Tensor

from rlhf_core.learning.preference_losses import LEFT, TIE
from rlhf_core.learning.reward.calibration import calibrate, fit_temperature
from rlhf_core.learning.reward.head import Features, solve_head
from rlhf_core.learning.reward.votes import Labels, RaterEffects
from tests.rlhf_core.learning.reward.simulated_votes import double, draw_outcomes, labels_of

ITEMS, VOTES, ETA = 30, 20_000, 1.0


def tournament(eta: float, seed: int = 0, side_bias: float = 0.0) -> tuple[Tensor, Features, Labels]:
    """True scores [ITEMS] and choices between random items, each item a feature of its own."""
    generator = torch.Generator().manual_seed(seed)
    truth = double(ITEMS, generator=generator)
    left = torch.randint(ITEMS, (VOTES,), generator=generator)
    right = (left + torch.randint(1, ITEMS, (VOTES,), generator=generator)) % ITEMS
    outcomes = draw_outcomes(truth[left] - truth[right] + side_bias, eta, generator)
    eye = torch.eye(ITEMS, dtype=torch.float64)
    return truth, Features(eye[:0], eye[left], eye[right]), labels_of(outcomes)


def recovered(features: Features, labels: Labels, truth: Tensor) -> tuple[float, float]:
    """Correlation of the solved scores with the truth, and their slope on it."""
    solution = solve_head(features, labels, ridge=0.01, label_smoothing=0.0, thumbs_weight=1.0)
    ours, theirs = solution.weight - solution.weight.mean(), truth - truth.mean()
    return float(torch.corrcoef(torch.stack([ours, theirs]))[0, 1]), float(ours @ theirs / (theirs @ theirs))


def test_rao_and_kupper_recovers_scores_and_scale_where_other_uses_of_ties_do_not() -> None:
    truth, features, labels = tournament(ETA)
    tied = labels.outcomes == TIE
    assert 0.3 < float(tied.double().mean()) < 0.4
    correlation, slope = recovered(features, labels, truth)
    assert correlation > 0.99
    assert slope == pytest.approx(1.0, abs=0.03)
    # Negative controls: ties dropped, and ties as half a win for either side.
    decisive = Features(*(part[~tied] if len(part) else part for part in features))
    dropped = recovered(decisive, labels.at(torch.zeros(0, dtype=torch.long), (~tied).nonzero()[:, 0]), truth)
    assert dropped[0] > 0.99
    assert dropped[1] > 1.2
    weights = torch.where(tied[:, None], 0.5, labels.pair_weights)
    outcomes = torch.where(tied, LEFT, labels.outcomes)
    halved = recovered(features, labels._replace(outcomes=outcomes, pair_weights=weights), truth)
    assert halved[0] > 0.99
    assert halved[1] < 0.9


def test_the_tie_parameter_and_the_side_bias_are_recovered_too() -> None:
    _, features, labels = tournament(ETA, side_bias=0.4)
    scalars = solve_head(features, labels, ridge=0.01, label_smoothing=0.0, thumbs_weight=1.0).scalars
    assert float(scalars.eta.detach()) == pytest.approx(ETA, abs=0.05)
    assert float(scalars.side_bias.detach()) == pytest.approx(0.4, abs=0.05)


def test_without_ties_scores_come_back_at_their_scale() -> None:
    truth, features, labels = tournament(0.0)
    correlation, slope = recovered(features, labels, truth)
    assert correlation > 0.99
    assert slope == pytest.approx(1.0, abs=0.03)


def test_raters_of_different_care_and_strictness_are_told_apart() -> None:
    generator = torch.Generator().manual_seed(2)
    truth = double(6, generator=generator)
    raters = torch.arange(4).repeat_interleave(1500)
    left, right, rated = (double(6000, 6, generator=generator) for _ in range(3))
    care = torch.tensor([2.0, 2.0, 0.5, 0.5], dtype=torch.float64)[raters]
    strict = torch.tensor([-1.0, 1.0, -1.0, 1.0], dtype=torch.float64)[raters]
    outcomes = draw_outcomes(care * ((left - right) @ truth), 0.0, generator)
    up = torch.rand(6000, dtype=torch.float64, generator=generator) < torch.sigmoid(rated @ truth - strict)
    labels = labels_of(outcomes, raters, up, raters)
    effects = RaterEffects(labels, 4)
    solve_head(Features(rated, left, right), labels, ridge=0.1, label_smoothing=0.0, thumbs_weight=1.0, effects=effects)
    log_slopes, sides, strictness = effects().detach()
    # Slopes 2 and 1/2 are log 2 above and below their mean; strictness is 1 above and below.
    assert log_slopes.exp().tolist() == pytest.approx([2.0, 2.0, 0.5, 0.5], rel=0.15)
    assert strictness.tolist() == pytest.approx([-1.0, 1.0, -1.0, 1.0], abs=0.2)
    assert float(sides.abs().max()) < 0.2


def test_scores_twice_too_large_have_temperature_two() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 1.5 * double(20_000, generator=generator)
    for eta in (0.0, 0.6):
        outcomes = draw_outcomes(logits, eta, generator)
        tau = fit_temperature(2.0 * logits, outcomes, torch.tensor(eta))
        assert tau == pytest.approx(2.0, rel=0.05)
        assert fit_temperature(logits, outcomes, torch.tensor(eta)) == pytest.approx(1.0, rel=0.05)


def test_true_probabilities_have_almost_no_calibration_error_and_doubled_ones_do_before_cooling() -> None:
    generator = torch.Generator().manual_seed(4)
    logits = 1.5 * double(20_000, generator=generator)
    outcomes, eta = draw_outcomes(logits, 0.0, generator), torch.tensor(0.0)
    prompts = [str(at) for at in range(20_000)]
    honest, cooled = (calibrate(scale * logits, outcomes, eta, prompts) for scale in (1.0, 2.0))
    assert honest.ece < 0.02
    assert cooled.ece < 0.02
    assert cooled.temperature == pytest.approx(2.0, rel=0.05)
    assert honest.ece_low < honest.ece_high < 0.02
    assert len(honest.bins) == 10
    assert all(each.n == 2000 for each in honest.bins)
