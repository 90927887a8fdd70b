"""PPO's losses against numbers worked by hand, finite differences, and a second implementation in numpy."""

import numpy as np
import pytest
import torch

from rlhf_core.learning.losses import (
    ENTROPY_ROWS,
    ppo_policy_loss,
    ppo_value_loss,
    token_entropy,
    token_logprobs,
    token_logprobs_and_entropy,
    token_mean,
)

ALL = torch.ones(1, 3, dtype=torch.bool)
SIX = torch.ones(6, 1, dtype=torch.bool)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
def test_logprobs_are_those_of_a_softmax_over_logits_divided_by_the_temperature(temperature: float) -> None:
    logits = torch.randn(50, 11, generator=torch.Generator().manual_seed(0)) * 3
    token_ids = torch.arange(50) % 11
    expected = torch.log_softmax(logits / temperature, -1)[torch.arange(50), token_ids]
    torch.testing.assert_close(token_logprobs(logits, token_ids, temperature), expected)


def test_logprobs_of_half_precision_logits_are_computed_in_float32() -> None:
    logits = torch.randn(4, 7, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)
    expected = torch.log_softmax(logits.float(), -1)[:, 2]
    torch.testing.assert_close(token_logprobs(logits, torch.full((4,), 2)), expected)


def test_entropy_is_that_of_the_whole_distribution() -> None:
    # Uniform over 4: ln 4. Two sure halves: ln 2 (the others have probability 0 to float precision).
    logits = torch.tensor([[0.0, 0.0, 0.0, 0.0], [90.0, 90.0, 0.0, 0.0]])
    torch.testing.assert_close(token_entropy(logits), torch.tensor([np.log(4), np.log(2)], dtype=torch.float32))
    # A temperature of 2 halves the logits: entropy of softmax([1, 0]) = .7311 * .3133 + .2689 * 1.3133 = .5822.
    torch.testing.assert_close(
        token_entropy(torch.tensor([[2.0, 0.0]]), 2.0), torch.tensor([0.58220]), atol=1e-5, rtol=0
    )


def test_entropy_beside_logprobs_is_the_entropy_and_has_no_gradient() -> None:
    logits = torch.randn(2 * ENTROPY_ROWS + 3, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    token_ids = torch.arange(len(logits)) % 7
    logprobs, entropy = token_logprobs_and_entropy(logits, token_ids, 0.7)
    torch.testing.assert_close(logprobs, token_logprobs(logits, token_ids, 0.7))
    torch.testing.assert_close(entropy, token_entropy(logits.detach(), 0.7))
    assert logprobs.requires_grad
    assert not entropy.requires_grad


def test_the_gradient_of_half_precision_logits_is_rounded_once() -> None:
    exact = torch.randn(4, 7, generator=torch.Generator().manual_seed(0))
    half = exact.to(torch.bfloat16).requires_grad_()
    wide = half.detach().float().requires_grad_()
    for logits in (half, wide):
        token_logprobs(logits, torch.full((4,), 2)).sum().backward()
    assert half.grad is not None
    assert wide.grad is not None
    assert torch.equal(half.grad, wide.grad.to(torch.bfloat16))


def test_the_clipped_surrogate_matches_the_worked_vector() -> None:
    # ratio [1.3, .7, 1.05], A [1, -1, 2], clip .2: the losses are
    #   max(-1.3, -1.2) = -1.2;  max(.7, .8) = .8;  max(-2.1, -2.1) = -2.1;  mean -2.5/3 = -.83333.
    # k2 = mean(ln(ratio)^2)/2 = (.068835 + .127217 + .002380)/6 = .033072
    # k3 = mean(ratio - 1 - ln ratio) = (.037636 + .056675 + .001210)/3 = .031840
    ratio = torch.tensor([[1.3, 0.7, 1.05]])
    loss = ppo_policy_loss(ratio.log(), torch.zeros(1, 3), torch.tensor([[1.0, -1.0, 2.0]]), ALL, clip_range=0.2)
    assert float(loss.loss) == pytest.approx(-2.5 / 3, abs=1e-6)
    assert float(loss.clip_fraction) == pytest.approx(2 / 3)
    assert float(loss.clip_fraction_high) == pytest.approx(1 / 3)
    assert float(loss.clip_fraction_low) == pytest.approx(1 / 3)
    assert float(loss.approx_kl_k2) == pytest.approx(0.033072, abs=1e-6)
    assert float(loss.approx_kl) == pytest.approx(0.031840, abs=1e-6)
    assert float(loss.ratio_mean) == pytest.approx(3.05 / 3)
    assert float(loss.ratio_max) == pytest.approx(1.3)
    assert float(loss.ratio_gap) == pytest.approx(0.3)


def test_the_gradient_is_zero_exactly_where_the_clipped_side_decides() -> None:
    # Six tokens: ratio beyond the range on the side that the advantage rewards -> no gradient; else -A * ratio / 6.
    ratio = torch.tensor([[1.3, 0.7, 1.3, 0.7, 1.1, 0.9]])
    advantages = torch.tensor([[1.0, -1.0, -1.0, 1.0, 1.0, -1.0]])
    logprobs = ratio.log().requires_grad_()
    mask = torch.ones(1, 6, dtype=torch.bool)
    loss = ppo_policy_loss(logprobs, torch.zeros(1, 6), advantages, mask, clip_range=0.2).loss
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient * 6, torch.tensor([[0.0, 0.0, 1.3, -0.7, -1.1, 0.9]]))


def test_another_range_above_one_lets_good_tokens_rise_further() -> None:
    # Ratios 1.25 and 1.3 with range .2 below and .28 above: the first is inside, the second counts as 1.28.
    ratio = torch.tensor([[1.25, 1.3, 0.75]])
    loss = ppo_policy_loss(
        ratio.log(), torch.zeros(1, 3), torch.tensor([[1.0, 1.0, -1.0]]), ALL, clip_range=0.2, clip_range_high=0.28
    )
    assert float(loss.loss) == pytest.approx((-1.25 - 1.28 + 0.8) / 3, abs=1e-6)
    assert float(loss.clip_fraction_high) == pytest.approx(1 / 3)
    assert float(loss.clip_fraction_low) == pytest.approx(1 / 3)


def test_a_bad_token_that_became_far_likelier_costs_no_more_than_the_dual_clip() -> None:
    # Ratio 5, advantages -1 and 1: plain losses 5 and -1.2; with a dual clip of 3 the first is 3, and stays so.
    logprobs = torch.tensor([[5.0, 5.0, 2.0]]).log().requires_grad_()
    advantages = torch.tensor([[-1.0, 1.0, -1.0]])
    loss = ppo_policy_loss(logprobs, torch.zeros(1, 3), advantages, ALL, clip_range=0.2, dual_clip=3.0).loss
    assert float(loss.detach()) == pytest.approx((3.0 - 1.2 + 2.0) / 3, abs=1e-6)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    torch.testing.assert_close(gradient * 3, torch.tensor([[0.0, 0.0, 2.0]]))


def test_importance_weights_scale_each_token() -> None:
    weights = torch.tensor([[2.0, 0.5, 0.0]])
    advantages = torch.tensor([[1.0, 1.0, 5.0]])
    loss = ppo_policy_loss(torch.zeros(1, 3), torch.zeros(1, 3), advantages, ALL, clip_range=0.2, weights=weights)
    assert float(loss.loss) == pytest.approx(-2.5 / 3)  # -(2 * 1 + .5 * 1 + 0 * 5) / 3


def test_the_value_loss_takes_the_worse_of_plain_and_clipped() -> None:
    # V_old 0, clip .2. V .5 against G 1: plain .25, clipped (.2 - 1)^2 = .64 -> .64.
    # V .5 against G 0: plain .25, clipped .04 -> .25. V .1 against G 1: inside the range, both .81.
    # Half their mean: .5 * (.64 + .25 + .81) / 3 = .283333; the clipped one decides 1 of 3.
    values, returns = torch.tensor([[0.5, 0.5, 0.1]]), torch.tensor([[1.0, 0.0, 1.0]])
    loss = ppo_value_loss(values, torch.zeros(1, 3), returns, ALL, clip_range=0.2)
    assert float(loss.loss) == pytest.approx(0.283333, abs=1e-6)
    assert float(loss.clip_fraction) == pytest.approx(1 / 3)


def test_what_lies_outside_the_mask_changes_neither_loss_nor_gradient() -> None:
    mask = torch.tensor([[True, True, False]])
    padded = torch.tensor([[0.1, -0.2, torch.nan]])
    logprobs = padded.clone().requires_grad_()
    advantages = torch.tensor([[1.0, -2.0, torch.nan]])
    loss = ppo_policy_loss(logprobs, torch.zeros(1, 3), advantages, mask, clip_range=0.2)
    short = ppo_policy_loss(
        padded[:, :2], torch.zeros(1, 2), advantages[:, :2], torch.ones(1, 2, dtype=torch.bool), clip_range=0.2
    )
    for name in loss._fields:
        assert float(getattr(loss, name).detach()) == pytest.approx(float(getattr(short, name))), name
    (gradient,) = torch.autograd.grad(loss.loss, logprobs)
    assert gradient.isfinite().all()
    assert gradient[0, 2] == 0


def test_microbatch_losses_add_up_to_the_minibatch() -> None:
    case = _Case(seed=3)
    whole = ppo_policy_loss(*case.policy, case.mask, clip_range=0.2)
    tokens = int(case.mask.sum())
    halves = [
        ppo_policy_loss(*(t[rows] for t in case.policy), case.mask[rows], clip_range=0.2, tokens=tokens)
        for rows in (slice(0, 2), slice(2, 5))
    ]
    for name in (
        "loss", "approx_kl", "approx_kl_k2", "clip_fraction", "clip_fraction_high", "clip_fraction_low", "ratio_mean"
    ):  # fmt: skip
        assert float(sum(getattr(half, name) for half in halves)) == pytest.approx(
            float(getattr(whole, name)), abs=1e-6
        )


def test_gradients_agree_with_finite_differences() -> None:
    case = _Case(seed=1)
    logits = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: token_logprobs(x, torch.tensor([0, 1, 2, 3, 4, 0]), 0.7), (logits,))
    logprobs = case.policy[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ppo_policy_loss(x, *case.policy[1:], case.mask, clip_range=0.2).loss, (logprobs,)
    )
    options = {"clip_range": 0.1, "clip_range_high": 0.15, "dual_clip": 1.2, "weights": case.value[0].abs()}
    assert torch.autograd.gradcheck(
        lambda x: ppo_policy_loss(x, *case.policy[1:], case.mask, **options).loss, (logprobs,)
    )
    assert torch.autograd.gradcheck(lambda x: token_mean(token_entropy(x, 0.7)[:, None], SIX), (logits,))
    values = case.value[0].clone().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: ppo_value_loss(x, *case.value[1:], case.mask, clip_range=0.2).loss, (values,)
    )


def test_a_token_by_token_implementation_in_numpy_agrees() -> None:
    case = _Case(seed=4)
    new, old, advantages = (t.numpy() for t in case.policy)
    values, old_values, returns = (t.numpy() for t in case.value)
    policy_losses, value_losses, clipped = [], [], 0
    for b, t in np.argwhere(case.mask.numpy()):
        ratio = np.exp(new[b, t] - old[b, t])
        policy_losses.append(-min(advantages[b, t] * ratio, advantages[b, t] * min(max(ratio, 0.8), 1.2)))
        clipped += ratio < 0.8 or ratio > 1.2
        near = old_values[b, t] + min(max(values[b, t] - old_values[b, t], -0.2), 0.2)
        value_losses.append(0.5 * max((values[b, t] - returns[b, t]) ** 2, (near - returns[b, t]) ** 2))
    policy = ppo_policy_loss(*case.policy, case.mask, clip_range=0.2)
    assert float(policy.loss) == pytest.approx(np.mean(policy_losses), abs=1e-12)
    assert float(policy.clip_fraction) == pytest.approx(clipped / len(policy_losses))
    assert 0 < clipped < len(policy_losses)
    value = ppo_value_loss(*case.value, case.mask, clip_range=0.2)
    assert float(value.loss) == pytest.approx(np.mean(value_losses), abs=1e-12)


def test_every_option_agrees_with_a_token_by_token_implementation_in_numpy() -> None:
    case = _Case(seed=6)
    new, old, advantages = (3 * t.numpy() for t in case.policy)
    weights = case.value[0].abs()
    losses, capped = [], 0
    for b, t in np.argwhere(case.mask.numpy()):
        ratio, advantage = np.exp(new[b, t] - old[b, t]), advantages[b, t]
        loss = max(-advantage * ratio, -advantage * min(max(ratio, 0.9), 1.3))
        if advantage < 0 and loss > -advantage * 1.5:
            loss, capped = -advantage * 1.5, capped + 1
        losses.append(float(weights[b, t]) * loss)
    policy = ppo_policy_loss(
        *(3 * t for t in case.policy),
        case.mask,
        clip_range=0.1,
        clip_range_high=0.3,
        dual_clip=1.5,
        weights=weights,
    )
    assert float(policy.loss) == pytest.approx(np.mean(losses), abs=1e-12)
    assert capped > 0


class _Case:
    """Five responses of 1 to 5 tokens in float64: logprobs, old logprobs, advantages; values, old values, returns."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)

        def numbers() -> torch.Tensor:
            return torch.randn(5, 5, dtype=torch.float64, generator=draw)

        self.mask = torch.arange(5) < torch.tensor([5, 1, 3, 2, 4])[:, None]
        self.policy = (0.2 * numbers(), 0.2 * numbers(), numbers())
        self.value = (0.3 * numbers(), 0.3 * numbers(), numbers())
