"""Whom the mixture believes: the table of the design notes, on people of known honesty."""

import pytest
import torch

from rlhf_core.learning.preference_losses import LEFT
from rlhf_core.learning.reward.head import Features, prepare, solve_prepared
from rlhf_core.learning.reward.raters import (
    BIASED,
    FLIPPED,
    HONEST,
    RaterMixture,
    VoteLikelihoods,
    believe,
    cross_fitted_mixture,
    draw_folds,
    fit_mixture,
    has_honest_majority,
)
from rlhf_core.learning.reward.votes import Labels
from tests.rlhf_core.learning.reward.simulated_votes import Group, agreement, labels_of, simulate

HONEST_40: Group = (40, 50, "honest")


def fitted(features: Features, labels: Labels, raters: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The head's weights when all votes are believed, and when the mixture says which."""
    prepared = prepare(features, ridge=1.0)
    plain, _ = solve_prepared(prepared, labels, label_smoothing=0.0, thumbs_weight=1.0)
    folds = draw_folds(range(len(labels.up) + len(labels.outcomes)), seed=0)
    mixture = cross_fitted_mixture(prepared, labels, folds, raters, thumbs_weight=1.0)
    thumbs, pairs = mixture.responsibilities[:, :2].split([len(labels.up), len(labels.outcomes)])
    mixed, _ = solve_prepared(prepared, believe(labels, thumbs, pairs), label_smoothing=0.0, thumbs_weight=1.0)
    return prepared.head(plain)[0], prepared.head(mixed)[0]


@pytest.mark.parametrize(
    ("groups", "expected", "gain"),
    [
        # Expected accuracy of the mixture as in the table of 2.2(d); the least that it gains over believing everyone.
        ([HONEST_40], 0.977, -0.01),
        ([(30, 50, "honest"), (10, 50, "flipped")], 0.974, 0.015),
        ([(24, 50, "honest"), (16, 50, "flipped")], 0.970, 0.06),
        ([(30, 50, "honest"), (10, 50, "left")], 0.972, -0.005),
        ([(24, 50, "honest"), (3, 267, "flipped")], 0.981, 0.06),
        ([HONEST_40, (60, 20, "flipped")], 0.973, 0.03),
    ],
    ids=["clean", "25% flipped", "40% flipped", "25% always left", "brigade", "swarm"],
)
def test_the_mixture_withstands_what_misleads_a_plain_fit(groups: list[Group], expected: float, gain: float) -> None:
    truth, features, labels = simulate(groups, seed=0)
    plain, mixed = fitted(features, labels, sum(many for many, _, _ in groups))
    assert agreement(mixed, truth) > expected - 0.01
    assert agreement(mixed, truth) > agreement(plain, truth) + gain


@pytest.mark.parametrize("group", [(1, 100, "honest"), (100, 1, "honest")], ids=["one rater", "one vote each"])
def test_little_knowledge_of_raters_does_no_harm(group: Group) -> None:
    gains = []
    for seed in range(3):
        truth, features, labels = simulate([group], seed)
        plain, mixed = fitted(features, labels, group[0])
        gains.append(agreement(mixed, truth, seed) - agreement(plain, truth, seed))
    assert sum(gains) / 3 > -0.015


@pytest.mark.parametrize("seed", range(4))
def test_votes_that_nothing_predicts_are_never_turned_round(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    rated = torch.randn(60, 40, dtype=torch.float64, generator=generator)
    labels = labels_of(torch.zeros(0, dtype=torch.long), up=torch.rand(60, generator=generator) < 0.5)
    prepared = prepare(Features(rated, rated[:0], rated[:0]), ridge=3.0)
    mixture = cross_fitted_mixture(prepared, labels, draw_folds(range(60), seed), 1, thumbs_weight=1.0)
    honest, flipped, _ = mixture.responsibilities.mean(0).tolist()
    assert not has_honest_majority(mixture) or honest > 2 * flipped


def test_an_honest_minority_is_not_believed() -> None:
    shares = torch.tensor([[0.4, 0.5, 0.1]])
    assert not has_honest_majority(RaterMixture(shares.repeat(3, 1), shares, torch.zeros(1, 2)))
    shares = torch.tensor([[0.6, 0.3, 0.1]])
    assert has_honest_majority(RaterMixture(shares.repeat(3, 1), shares, torch.zeros(1, 2)))


def test_flipped_and_constant_thumbs_are_found_too() -> None:
    generator = torch.Generator().manual_seed(1)
    truth = torch.randn(10, dtype=torch.float64, generator=generator) * 0.8
    rated = torch.randn(2000, 10, dtype=torch.float64, generator=generator)
    raters = torch.arange(40).repeat_interleave(50)
    chance = torch.rand(2000, dtype=torch.float64, generator=generator)
    up = chance < torch.sigmoid(2.0 * rated @ truth - 0.5)
    up = torch.where(raters < 10, ~up, torch.where(raters < 15, True, up))
    labels = labels_of(torch.zeros(0, dtype=torch.long), up=up, thumb_raters=raters)
    prepared = prepare(Features(rated, rated[:0], rated[:0]), ridge=1.0)
    mixture = cross_fitted_mixture(prepared, labels, draw_folds(range(2000), 0), 40, thumbs_weight=1.0)
    found = mixture.shares.argmax(1).tolist()
    assert found == [FLIPPED] * 10 + [BIASED] * 5 + [HONEST] * 25
    assert float(mixture.rates[10:15, 1].min()) > 0.9  # always thumb up


def test_one_step_of_doubt_worked_by_hand() -> None:
    # One rater, one vote for the left side that an honest rater gives with probability 0.2: prior shares 0.8, 0.1, 0.1
    # and rate 1/2 make 0.16 : 0.08 : 0.05, so 0.552, 0.276, 0.172 at first. EM then solves for shares and rate:
    # shares = (8 + h, 1 + f, 1 + b) / 11, rate = (b + 1) / (b + 2). At its fixed point all must hold at once.
    vote = VoteLikelihoods(
        raters=torch.tensor([0]),
        honest=torch.tensor([0.2], dtype=torch.float64),
        flipped=torch.tensor([0.8], dtype=torch.float64),
        first=torch.tensor([True]),
        thumbs=torch.tensor([False]),
        blind=torch.tensor([1.0], dtype=torch.float64),
        tied=torch.tensor([False]),
    )
    mixture = fit_mixture(vote, raters=1)
    h, f, b = mixture.responsibilities[0].tolist()
    assert mixture.shares[0].tolist() == pytest.approx([(8 + h) / 11, (1 + f) / 11, (1 + b) / 11], abs=1e-6)
    assert float(mixture.rates[0, 0]) == pytest.approx((b + 1) / (b + 2), abs=1e-6)
    weights = [(8 + h) / 11 * 0.2, (1 + f) / 11 * 0.8, (1 + b) / 11 * (b + 1) / (b + 2)]
    assert [h, f, b] == pytest.approx([each / sum(weights) for each in weights], abs=1e-6)


def test_where_sides_were_not_drawn_nobody_is_called_side_biased() -> None:
    _, features, labels = simulate([(4, 50, "honest")], seed=3)
    swap = (labels.outcomes != LEFT)[:, None]
    ordered = Features(
        features.rated,
        torch.where(swap, features.right, features.left),
        torch.where(swap, features.left, features.right),
    )
    written = labels._replace(outcomes=torch.full_like(labels.outcomes, LEFT))
    mixture = cross_fitted_mixture(prepare(ordered, 1.0), written, draw_folds(range(200), 0), 4, thumbs_weight=1.0)
    assert float(mixture.responsibilities[:, BIASED].max()) == 0.0
    assert float(mixture.responsibilities[:, HONEST].mean()) > 0.8


def test_folds_keep_a_prompt_together_and_are_even() -> None:
    groups = [f"p{at % 50}" for at in range(200)]
    folds = draw_folds(groups, seed=1)
    assert all(len(set(folds[at::50].tolist())) == 1 for at in range(50))
    assert torch.bincount(folds).tolist() == [40] * 5
