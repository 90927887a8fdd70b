"""The losses of the alternatives to PPO: against numbers worked by hand, numpy, numerical gradients and enumeration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from rlhf_core.learning.kl import estimate_kl
from rlhf_core.learning.losses import ppo_policy_loss
from rlhf_core.learning.policy_losses import (
    balanced_thumb_weights,
    dpo_losses,
    group_advantages,
    hits,
    kto_losses,
    leave_one_out_advantages,
    mismatched_kl,
    neutral_tie_threshold,
    sequence_sums,
    telling_groups,
)


def doubles(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


ZERO = doubles(0.0)[0]
NO_TIES = torch.tensor([False])


def random_doubles(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, dtype=torch.float64, generator=generator)


def test_a_response_sums_what_counts_and_nothing_else() -> None:
    values = torch.tensor([[1.0, 2.0, math.nan], [4.0, math.nan, math.inf]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert sequence_sums(values, mask).tolist() == [3.0, 4.0]


def test_the_dpo_loss_of_hand_worked_log_ratios() -> None:
    # d = .5 (2 - (-1)) = 1.5: log(1 + e^-1.5) = log 1.223130 = .201413. d = -1.5: .201413 + 1.5.
    losses = dpo_losses(doubles(2.0, -1.0), doubles(-1.0, 2.0), NO_TIES, ZERO, kl_coef=0.5)
    assert losses.tolist() == pytest.approx([0.201413, 1.701413], abs=1e-6)
    # kl_coef log 3 and log ratios one apart: P(chosen) = 3/4.
    assert float(dpo_losses(doubles(0.2), doubles(-0.8), NO_TIES, ZERO, kl_coef=math.log(3))) == pytest.approx(
        math.log(4 / 3)
    )


def test_a_policy_that_is_its_reference_knows_nothing_about_any_pair() -> None:
    assert float(dpo_losses(doubles(0.0), doubles(0.0), NO_TIES, ZERO, kl_coef=0.1)) == pytest.approx(math.log(2))


def test_smoothed_dpo_mixes_in_the_other_choice() -> None:
    # P(chosen) = 3/4, eps = .1: .9 log(4/3) + .1 log 4 = .258914 + .138629 = .397543.
    losses = dpo_losses(doubles(1.0), doubles(0.0), NO_TIES, ZERO, kl_coef=math.log(3), label_smoothing=0.1)
    assert losses.tolist() == pytest.approx([0.397543], abs=1e-6)


def test_a_margin_asks_the_chosen_side_to_lead_by_as_much() -> None:
    # d = 2 with margin 2 is d = 0. A tie has nothing to lead by.
    margins, eta = doubles(2.0, 2.0), doubles(0.5)[0]
    losses = dpo_losses(doubles(2.0, 2.0), doubles(0.0, 0.0), torch.tensor([False, True]), eta, kl_coef=1.0)
    led = dpo_losses(
        doubles(2.0, 2.0), doubles(0.0, 0.0), torch.tensor([False, True]), eta, kl_coef=1.0, margins=margins
    )
    assert float(led[0]) == pytest.approx(math.log(1 + math.exp(0.5)))
    assert led[1] == losses[1]


def test_the_three_outcomes_of_a_comparison_are_hand_worked_and_sum_to_one() -> None:
    # eta = log 2, d = log 3: sigma(d - eta) = sigma(log 3/2) = 3/5, sigma(-d - eta) = sigma(-log 6) = 1/7,
    # tie (4 - 1) 3/5 1/7 = 9/35: together 21/35 + 5/35 + 9/35.
    eta, d, tied = doubles(math.log(2))[0], math.log(3), torch.tensor([False, False, True])
    losses = dpo_losses(doubles(d, 0.0, d), doubles(0.0, d, 0.0), tied, eta, kl_coef=1.0)
    assert (-losses).exp().tolist() == pytest.approx([21 / 35, 5 / 35, 9 / 35])


def test_a_tie_threshold_of_zero_is_plain_dpo_with_a_finite_gradient() -> None:
    chosen, eta = random_doubles(4, 0).requires_grad_(), doubles(0.0)[0].requires_grad_()
    rejected, tied = random_doubles(4, 1), torch.zeros(4, dtype=torch.bool)
    losses = dpo_losses(chosen, rejected, tied, eta, kl_coef=0.3)
    assert losses.tolist() == pytest.approx(np.log1p(np.exp(-0.3 * (chosen - rejected).detach().numpy())).tolist())
    losses.sum().backward()
    assert chosen.grad is not None
    assert eta.grad is not None
    assert chosen.grad.isfinite().all()
    assert eta.grad.isfinite()


def test_the_neutral_threshold_ties_equals_in_the_given_share() -> None:
    eta = doubles(neutral_tie_threshold(0.35))[0]
    tie = dpo_losses(doubles(1.0), doubles(1.0), torch.tensor([True]), eta, kl_coef=2.0)
    assert float((-tie).exp()) == pytest.approx(0.35)
    assert neutral_tie_threshold(0.0) == 0.0


def test_the_kto_loss_of_hand_worked_log_ratios() -> None:
    # z = 1 (h - z0) = log 3 for h = log 3 + .5, z0 = .5: up 2 (1 - 3/4), down 1 - 1/4; at h = z0 both 1/2.
    h = doubles(math.log(3) + 0.5, math.log(3) + 0.5, 0.5, 0.5)
    up = torch.tensor([True, False, True, False])
    losses = kto_losses(h, up, doubles(0.5)[0], kl_coef=1.0, up_weight=2.0, down_weight=1.0)
    assert losses.tolist() == pytest.approx([0.5, 0.75, 1.0, 0.5])


def test_the_reference_point_is_the_mean_of_mismatched_log_ratios_and_never_negative() -> None:
    assert float(mismatched_kl(doubles(1.0, 3.0, -1.0))) == 1.0
    assert float(mismatched_kl(doubles(-1.0, -2.0))) == 0.0


def carries_no_gradient(reference_point: Callable[[Tensor], Tensor]) -> bool:
    return not reference_point(doubles(1.0, 3.0).requires_grad_()).requires_grad


def test_no_gradient_passes_through_the_reference_point() -> None:
    assert carries_no_gradient(mismatched_kl)
    # The mistake that this would catch.
    assert not carries_no_gradient(lambda log_ratios: log_ratios.mean().clamp_min(0.0))


@pytest.mark.parametrize(
    ("n_up", "n_down", "weights"),
    [
        (50, 50, (1.0, 1.0)),
        (60, 50, (1.0, 1.0)),  # 1.2 lies in [1, 4/3]
        (40, 50, (1.25, 1.0)),  # 40 * 1.25 = 50
        (100, 50, (1.0, 1.5)),  # 100 / (50 * 1.5) = 4/3
    ],
)
def test_thumb_weights_balance_the_kinds(n_up: int, n_down: int, weights: tuple[float, float]) -> None:
    assert balanced_thumb_weights(n_up, n_down) == pytest.approx(weights)


def test_leave_one_out_advantages_of_hand_worked_rewards() -> None:
    # Means of the others: (2 + 6) / 2, (1 + 6) / 2, (1 + 2) / 2.
    assert leave_one_out_advantages(doubles(1.0, 2.0, 6.0)[None]).tolist() == [[-3.0, -1.5, 4.5]]


def test_group_advantages_of_hand_worked_rewards() -> None:
    # Mean 3, variance (4 + 1 + 9) / 3, standard deviation 2.160247.
    rewards = torch.stack([doubles(1.0, 2.0, 6.0), doubles(2.0, 2.0, 2.0)])
    assert group_advantages(rewards, normalise=False)[0].tolist() == [-2.0, -1.0, 3.0]
    normalised = group_advantages(rewards, normalise=True)
    assert normalised[0].tolist() == pytest.approx([-0.925820, -0.462910, 1.388730], abs=1e-6)
    assert normalised[1].tolist() == [0.0, 0.0, 0.0]


def test_groups_of_equal_rewards_are_told_apart_from_those_that_teach() -> None:
    rewards = torch.stack([doubles(1.0, 2.0), doubles(3.0, 3.0), doubles(3.0, 3.0 + 1e-6)])
    assert telling_groups(rewards).tolist() == [True, False, False]
    assert not telling_groups(torch.ones(3, 4)).any()


Baseline = Callable[[Tensor], Tensor]


def mean_group_gradient(advantages: Baseline, size: int = 3) -> Tensor:
    """Gradient [4] of the expected loss over every group of `size` draws of a four-armed policy, by enumeration."""
    logits = doubles(0.3, -0.2, 0.9, 0.1).requires_grad_()
    scores = doubles(1.0, 0.5, 0.0, -0.5)
    total = ZERO
    for arms in itertools.product(range(4), repeat=size):
        drawn = list(arms)
        logprobs = logits.log_softmax(-1)[drawn][:, None]
        taken = advantages(scores[drawn][None]).flatten()[:, None]
        mask = torch.ones(size, 1, dtype=torch.bool)
        loss = ppo_policy_loss(logprobs, logprobs.detach(), taken, mask, clip_range=0.2).loss
        total = total + logprobs.detach().sum().exp() * loss
    return torch.autograd.grad(total, logits)[0]


def reinforce_gradient() -> Tensor:
    """Of minus the expected score, exactly: what a policy gradient must be on average."""
    logits = doubles(0.3, -0.2, 0.9, 0.1).requires_grad_()
    return torch.autograd.grad(-(logits.softmax(-1) * doubles(1.0, 0.5, 0.0, -0.5)).sum(), logits)[0]


def test_the_mean_gradient_of_leave_one_out_is_that_of_reinforce() -> None:
    torch.testing.assert_close(mean_group_gradient(leave_one_out_advantages), reinforce_gradient())


def test_a_baseline_that_contains_the_response_itself_shrinks_the_gradient() -> None:
    # Taking r_i / 3 off its own advantage leaves 2/3 of the gradient: right for GRPO, and a mistake in RLOO.
    off = mean_group_gradient(lambda rewards: group_advantages(rewards, normalise=False))
    torch.testing.assert_close(off, 2 / 3 * reinforce_gradient())
    assert not torch.allclose(off, reinforce_gradient(), rtol=1e-2)


def log_sigmoid(x: np.ndarray) -> np.ndarray:
    return -np.log1p(np.exp(-x))


def test_numpy_agrees_on_dpo() -> None:
    chosen, rejected, margins = (random_doubles(6, seed) for seed in (0, 1, 2))
    tied = torch.tensor([False, True, False, False, True, False])
    losses = dpo_losses(
        chosen, rejected, tied, doubles(0.7)[0], kl_coef=0.4, label_smoothing=0.1, margins=margins.abs()
    )
    d = 0.4 * (chosen.numpy() - rejected.numpy())
    by = d - np.abs(margins.numpy())
    choices = -0.9 * log_sigmoid(by - 0.7) - 0.1 * log_sigmoid(-by - 0.7)
    ties = -np.log(np.exp(1.4) - 1.0) - log_sigmoid(d - 0.7) - log_sigmoid(-d - 0.7)
    np.testing.assert_allclose(losses.numpy(), np.where(tied.numpy(), ties, choices))


def test_numpy_agrees_on_kto() -> None:
    log_ratios, mismatched = random_doubles(6, 3), random_doubles(6, 4) + 0.5
    up = torch.tensor([True, False, True, True, False, False])
    z0 = mismatched_kl(mismatched)
    losses = kto_losses(log_ratios, up, z0, kl_coef=0.4, up_weight=1.1, down_weight=1.3)
    gains = 0.4 * (log_ratios.numpy() - max(0.0, mismatched.numpy().mean()))
    expected = np.where(up.numpy(), 1.1 * (1 - 1 / (1 + np.exp(-gains))), 1.3 * (1 - 1 / (1 + np.exp(gains))))
    np.testing.assert_allclose(losses.numpy(), expected)


def test_numpy_agrees_on_group_baselines() -> None:
    rewards = random_doubles(12, 5).view(3, 4)
    plain = rewards.numpy()
    others = np.array([[np.delete(row, at).mean() for at in range(4)] for row in plain])
    np.testing.assert_allclose(leave_one_out_advantages(rewards).numpy(), plain - others)
    centred = plain - plain.mean(1, keepdims=True)
    np.testing.assert_allclose(group_advantages(rewards, normalise=True).numpy(), centred / plain.std(1, keepdims=True))


def test_gradients_match_finite_differences() -> None:
    chosen, rejected = random_doubles(4, 6).requires_grad_(), random_doubles(4, 7).requires_grad_()
    eta, tied = doubles(0.6)[0].requires_grad_(), torch.tensor([False, True, False, True])
    up = torch.tensor([True, False, False, True])
    margins = random_doubles(4, 8).abs()
    assert gradcheck(
        lambda c, r, e: dpo_losses(c, r, tied, e, kl_coef=0.4, label_smoothing=0.1, margins=margins),
        (chosen, rejected, eta),
    )
    assert gradcheck(
        lambda h: kto_losses(h, up, doubles(0.2)[0], kl_coef=0.4, up_weight=1.2, down_weight=1.0), (chosen,)
    )
    assert gradcheck(leave_one_out_advantages, (random_doubles(6, 9).view(2, 3).requires_grad_(),))
    assert gradcheck(lambda r: group_advantages(r, normalise=True), (random_doubles(6, 9).view(2, 3).requires_grad_(),))
    assert gradcheck(lambda p: estimate_kl(p, rejected.detach()).k2, (chosen,))


def test_huge_log_ratios_give_finite_losses() -> None:
    huge, tied = torch.tensor([1e5, -1e5]), torch.tensor([False, True])
    assert dpo_losses(huge, -huge, tied, torch.tensor(0.5), kl_coef=1.0, label_smoothing=0.1).isfinite().all()
    assert kto_losses(huge, ~tied, torch.tensor(0.0), kl_coef=1.0, up_weight=1.0, down_weight=1.0).isfinite().all()


def test_leads_that_are_alike_count_half() -> None:
    assert float(hits(torch.tensor([1.0, 5e-4, 0.0, -5e-4, -1.0]))) == 2.5
