"""The likelihoods of judgements against numbers worked by hand, against their own limits and numerical gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from rlhf_core.learning.preference_losses import (
    LEFT,
    RIGHT,
    TIE,
    centering_losses,
    normal_penalty,
    pair_logits,
    pair_logprobs,
    pair_losses,
    reversed_outcomes,
    thumb_logits,
    thumb_losses,
)

OUTCOMES = torch.tensor([LEFT, RIGHT, TIE])


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


NO_TIES = doubles(0.0)[0]


def test_the_pair_loss_of_hand_worked_differences() -> None:
    # z = 0: log 2. z = log 3: P(left) = 3/4, loss log(4/3) for left and log 4 for right.
    logits = pair_logits(doubles(1.0, math.log(3), math.log(3)), doubles(1.0, 0.0, 0.0))
    losses = pair_losses(logits, torch.tensor([LEFT, LEFT, RIGHT]), NO_TIES)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])


def test_ties_are_as_probable_as_rao_and_kupper_say() -> None:
    # theta = e^eta = 2, z = 0: P(left) = P(right) = 1 / (1 + 2) = 1/3, P(tie) = (4 - 1) / 9 = 1/3.
    # z = log 4: P(left) = 4 / (4 + 2) = 2/3, P(right) = 1 / (1 + 8) = 1/9, P(tie) = 3 * 2/3 * 1/9 = 2/9.
    probabilities = pair_logprobs(doubles(0.0, math.log(4)), doubles(math.log(2))[0]).exp()
    assert probabilities[0].tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert probabilities[1].tolist() == pytest.approx([2 / 3, 1 / 9, 2 / 9])


def test_the_three_outcomes_have_probability_one_together() -> None:
    logits = torch.linspace(-9.0, 9.0, 25, dtype=torch.float64)
    for eta in (0.0, 0.1, 1.0, 4.0):
        total = pair_logprobs(logits, doubles(eta)[0]).exp().sum(-1)
        assert total.tolist() == pytest.approx([1.0] * 25, abs=1e-9)


def test_without_ties_the_model_is_bradley_and_terry_s() -> None:
    logits = doubles(-2.0, 0.3, 5.0)
    vanishing = pair_logprobs(logits, doubles(1e-9)[0])
    assert torch.allclose(vanishing[:, 0], torch.nn.functional.logsigmoid(logits), atol=1e-8)
    assert float(vanishing[:, 2].exp().max()) < 1e-8


def test_swapping_sides_leaves_the_likelihood_equal_without_side_bias_and_only_then() -> None:
    left, right, eta = doubles(0.3, -2.0, 1.0), doubles(1.1, 0.4, 1.5), doubles(0.7)[0]
    forward = pair_losses(pair_logits(left, right), OUTCOMES, eta)
    backward = pair_losses(pair_logits(right, left), reversed_outcomes(OUTCOMES), eta)
    assert forward.tolist() == pytest.approx(backward.tolist(), abs=1e-12)
    biased = pair_losses(pair_logits(left, right, 0.0, 0.5), OUTCOMES, eta)
    swapped = pair_losses(pair_logits(right, left, 0.0, 0.5), reversed_outcomes(OUTCOMES), eta)
    assert float((biased - swapped).abs().min()) > 0.05


def test_a_rater_s_slope_and_side_bias_enter_the_odds() -> None:
    # a = 2, c = 1/2: z = 2 (1.5 - 1) + 0.5 = 1.5
    assert float(pair_logits(doubles(1.5), doubles(1.0), doubles(math.log(2)), doubles(0.5))) == pytest.approx(1.5)


def test_a_margin_is_asked_of_the_chosen_side_whichever_it_is() -> None:
    # d = log 12 for the chosen side, m = log 4: sigma(log 3) = 3/4, loss log(4/3); a tie has no margin.
    logits = doubles(math.log(12), -math.log(12))
    losses = pair_losses(logits, torch.tensor([LEFT, RIGHT]), NO_TIES, doubles(math.log(4)))
    assert losses.tolist() == pytest.approx([math.log(4 / 3)] * 2)
    eta, tie = doubles(0.4)[0], torch.tensor([TIE])
    assert float(pair_losses(doubles(0.0), tie, eta, doubles(3.0))) == float(pair_losses(doubles(0.0), tie, eta))


def test_label_smoothing_mixes_in_the_other_outcome_and_leaves_ties() -> None:
    # z = log 3, eps = 0.1: 0.9 log(4/3) + 0.1 log 4 = 0.258914 + 0.138629 = 0.397543
    losses = pair_losses(doubles(math.log(3)), torch.tensor([LEFT]), NO_TIES, label_smoothing=0.1)
    assert losses.tolist() == pytest.approx([0.397543], abs=1e-6)
    tie, eta = torch.tensor([TIE]), doubles(1.0)[0]
    smoothed = pair_losses(doubles(0.5), tie, eta, label_smoothing=0.1)
    assert float(smoothed) == float(pair_losses(doubles(0.5), tie, eta))


def test_the_thumb_loss_of_hand_worked_scores() -> None:
    # alpha = 2, b = 1. s = 0.5: logit 0, log 2 either way. s = (1 + log 3) / 2: logit log 3, P(up) = 3/4.
    scores = doubles(0.5, 0.5, (1 + math.log(3)) / 2, (1 + math.log(3)) / 2)
    up = torch.tensor([True, False, True, False])
    losses = thumb_losses(thumb_logits(scores, doubles(math.log(2))[0], doubles(1.0)[0]), up)
    assert losses.tolist() == pytest.approx([math.log(2), math.log(2), math.log(4 / 3), math.log(4)])


def test_a_strict_rater_needs_more_for_a_thumb_up() -> None:
    # alpha = 1, b = 1, b_k = log 3 - 1: a score of 0 has odds e^-log 3, P(up) = 1/4.
    logits = thumb_logits(doubles(0.0), doubles(0.0)[0], doubles(1.0)[0], doubles(math.log(3) - 1))
    assert float(torch.sigmoid(logits)) == pytest.approx(0.25)


def test_a_thumb_is_a_pair_against_the_threshold() -> None:
    scores, up = doubles(1.5, -0.5), torch.tensor([True, True])
    thumbs = thumb_losses(thumb_logits(scores, doubles(0.0)[0], doubles(0.25)[0]), up, 0.05)
    pairs = pair_losses(pair_logits(scores, doubles(0.25, 0.25)), torch.tensor([LEFT, LEFT]), NO_TIES, 0.0, 0.05)
    assert thumbs.tolist() == pytest.approx(pairs.tolist())


def test_a_prior_is_a_normal_of_its_spread() -> None:
    # -log N(2; 0, 1) + log N(0; 0, 1) = 4 / 2; with std 1/2, 16 / 2.
    assert float(normal_penalty(doubles(2.0))) == 2.0
    assert float(normal_penalty(doubles(2.0), 0.5)) == 8.0


def test_centering_is_zero_for_scores_about_zero() -> None:
    assert centering_losses(doubles(1.0, 2.0), doubles(-1.0, 1.0)).tolist() == [0.0, 9.0]


def test_huge_scores_give_finite_losses() -> None:
    logits = doubles(2e4, -2e4)
    assert pair_losses(logits, torch.tensor([LEFT, RIGHT]), doubles(0.5)[0], 0.0, 0.05).isfinite().all()
    assert pair_losses(logits, torch.tensor([RIGHT, LEFT]), NO_TIES).tolist() == [2e4, 2e4]
    assert pair_losses(logits, torch.tensor([TIE, TIE]), NO_TIES).isfinite().all()


def test_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    left, right, slopes, biases = (
        torch.randn(6, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(4)
    )
    eta, alpha, threshold = (doubles(value)[0].requires_grad_() for value in (0.6, 0.3, -0.7))
    margins, outcomes = doubles(0.0, 0.5, 0.0, 0.2, 0.0, 0.0), OUTCOMES.repeat(2)

    def pairs(*given: torch.Tensor) -> torch.Tensor:
        a, b, log_slopes, sides, tie = given
        return pair_losses(pair_logits(a, b, log_slopes, sides), outcomes, tie, margins, 0.05)

    def thumbs(scores: torch.Tensor, log_alpha: torch.Tensor, b: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        return thumb_losses(thumb_logits(scores, log_alpha, b, own), outcomes == LEFT, 0.05)

    assert gradcheck(pairs, (left, right, slopes, biases, eta))
    assert gradcheck(thumbs, (left, alpha, threshold, biases))
    assert gradcheck(normal_penalty, (left,))
    assert gradcheck(centering_losses, (left, right))
