"""The reward model's losses against numbers worked by hand and against numerical gradients."""

import math

import pytest
import torch
from torch.autograd import gradcheck

from rlhf_core.learning.preference_losses import (
    centering_losses,
    log_alpha_penalty,
    pair_losses,
    thumb_losses,
)


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_pair_loss_of_hand_worked_differences() -> None:
    # d = 0: log 2. d = log 3: P(chosen) = 3/4, loss log(4/3). d = -log 3: P = 1/4, loss log 4.
    losses = pair_losses(doubles(1.0, math.log(3), 0.0), doubles(1.0, 0.0, math.log(3)))
    assert losses.tolist() == pytest.approx([math.log(2), math.log(4 / 3), math.log(4)])


def test_label_smoothing_mixes_in_the_other_outcome() -> None:
    # d = log 3, eps = 0.1: 0.9 log(4/3) + 0.1 log 4 = 0.258914 + 0.138629 = 0.397543
    losses = pair_losses(doubles(math.log(3)), doubles(0.0), label_smoothing=0.1)
    assert losses.tolist() == pytest.approx([0.397543], abs=1e-6)


def test_swapping_the_sides_of_a_pair_swaps_its_probabilities() -> None:
    chosen, rejected = doubles(0.3, -2.0), doubles(1.1, 0.4)
    forward, backward = pair_losses(chosen, rejected), pair_losses(rejected, chosen)
    assert ((-forward).exp() + (-backward).exp()).tolist() == pytest.approx([1.0, 1.0])


def test_the_thumb_loss_of_hand_worked_scores() -> None:
    # alpha = 2, b = 1. s = 0.5: logit 0, log 2 either way. s = (1 + log 3) / 2: logit log 3, P(up) = 3/4.
    scores = doubles(0.5, 0.5, (1 + math.log(3)) / 2, (1 + math.log(3)) / 2)
    up = torch.tensor([True, False, True, False])
    losses = thumb_losses(scores, up, doubles(math.log(2))[0], doubles(1.0)[0])
    assert losses.tolist() == pytest.approx([math.log(2), math.log(2), math.log(4 / 3), math.log(4)])


def test_smoothing_a_thumb_is_smoothing_a_pair_with_the_threshold() -> None:
    zero, up = doubles(0.0)[0], torch.tensor([True, True])
    thumbs = thumb_losses(doubles(1.5, -0.5), up, zero, doubles(0.25)[0], label_smoothing=0.05)
    pairs = pair_losses(doubles(1.5, -0.5), doubles(0.25, 0.25), label_smoothing=0.05)
    assert thumbs.tolist() == pytest.approx(pairs.tolist())


def test_the_prior_of_alpha_is_a_standard_normal_of_its_logarithm() -> None:
    # -log N(2; 0, 1) + log N(0; 0, 1) = 4 / 2
    assert float(log_alpha_penalty(doubles(2.0)[0])) == 2.0
    assert float(log_alpha_penalty(doubles(0.0)[0])) == 0.0


def test_centering_is_zero_for_scores_about_zero() -> None:
    assert centering_losses(doubles(1.0, 2.0), doubles(-1.0, 1.0)).tolist() == [0.0, 9.0]


def test_huge_scores_give_finite_losses() -> None:
    assert pair_losses(doubles(1e4), doubles(-1e4), 0.05).isfinite().all()
    assert pair_losses(doubles(-1e4), doubles(1e4)).tolist() == [2e4]


def test_gradients_match_finite_differences() -> None:
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, scores = (
        torch.randn(4, dtype=torch.float64, generator=generator).requires_grad_() for _ in range(3)
    )
    log_alpha, threshold = doubles(0.3)[0].requires_grad_(), doubles(-0.7)[0].requires_grad_()
    up = torch.tensor([True, False, False, True])
    assert gradcheck(lambda a, b: pair_losses(a, b, 0.05), (chosen, rejected))
    assert gradcheck(lambda s, a, b: thumb_losses(s, up, a, b, 0.05), (scores, log_alpha, threshold))
    assert gradcheck(log_alpha_penalty, (log_alpha,))
    assert gradcheck(centering_losses, (chosen, rejected))
