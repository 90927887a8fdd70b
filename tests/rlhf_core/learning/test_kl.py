"""KL estimators against the exact divergence, and the adaptive coefficient against worked numbers."""

import pytest
import torch

from rlhf_core.learning.kl import adapt_kl_coef, estimate_kl, response_kl


def test_the_three_estimators_match_worked_numbers() -> None:
    # log ratio .5: k1 .5, k2 .125, k3 = e^-.5 - 1 + .5 = .106531. log ratio -.5: -.5, .125, e^.5 - 1 - .5 = .148721.
    kl = estimate_kl(torch.tensor([[-1.0, -1.5]]), torch.tensor([[-1.5, -1.0]]))
    torch.testing.assert_close(kl.k1, torch.tensor([[0.5, -0.5]]))
    torch.testing.assert_close(kl.k2, torch.tensor([[0.125, 0.125]]))
    torch.testing.assert_close(kl.k3, torch.tensor([[0.106531, 0.148721]]), atol=1e-6, rtol=0)


def test_k1_and_k3_estimate_the_exact_divergence_and_k3_varies_less() -> None:
    policy = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    reference = torch.tensor([0.3, 0.3, 0.2, 0.2], dtype=torch.float64)
    exact = float((policy * (policy / reference).log()).sum())
    drawn = torch.multinomial(policy, 200_000, replacement=True, generator=torch.Generator().manual_seed(0))
    kl = estimate_kl(policy.log()[drawn], reference.log()[drawn])
    for estimate in (kl.k1, kl.k3):
        standard_error = float(estimate.std()) / len(drawn) ** 0.5
        assert abs(float(estimate.mean()) - exact) < 4 * standard_error
    assert kl.k3.var() < kl.k1.var()
    assert (kl.k3 >= 0).all()
    # k2 is biased: E[(log ratio)^2] / 2 = .0406 here, far from the exact .0458.
    assert abs(float(kl.k2.mean()) - exact) > 4 * float(kl.k2.std()) / len(drawn) ** 0.5


def test_response_kl_sums_over_tokens_and_averages_over_responses() -> None:
    # (.1 + .2 + .3) + (.4) = 1.0 over two responses: .5. A mean over tokens would give .25.
    token_kl = torch.tensor([[0.1, 0.2, 0.3], [0.4, torch.nan, torch.nan]])
    mask = torch.tensor([[True, True, True], [True, False, False]])
    assert float(response_kl(token_kl, mask)) == pytest.approx(0.5)


@pytest.mark.parametrize(("ref_kl", "expected"), [(12.0, 0.151536), (6.0, 0.15), (3.0, 0.148464)])
def test_the_adaptive_coefficient_follows_the_worked_numbers(ref_kl: float, expected: float) -> None:
    # Errors 1 and -.5 are clipped to +-.2: .15 * (1 +- .2 * 512 / 10000) = .15 * (1 +- .01024).
    assert adapt_kl_coef(0.15, ref_kl, target=6.0, episodes=512, horizon=10_000) == pytest.approx(expected, abs=1e-9)
