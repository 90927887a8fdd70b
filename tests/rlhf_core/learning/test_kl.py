"""KL estimators against the exact divergence, and the adaptive coefficient against worked numbers."""

from pathlib import Path

import pytest
import torch

from rlhf_core.learning.alternatives_settings import SamplingSettings, StepSettings
from rlhf_core.learning.answer_logprobs import answer_kls, answer_logprobs
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.fresh_responses import draw_responses
from rlhf_core.learning.kl import adapt_kl_coef, estimate_kl, response_kl
from rlhf_core.models.load import load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable


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


PROMPT = (9, 8, 7)
SETTINGS = StepSettings(temperature=1.3)
DEVICES = Devices(device="cpu")


def moved(directory: Path, lora: LoraSettings | None) -> Trainable:
    """A policy whose weights are no longer the reference's."""
    trainee = make_trainable(load_policy(directory), lora)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for each in trainee.parameters:
            each.add_(0.02 * torch.randn(each.shape, generator=draw))
    trainee.refresh()
    return trainee


@pytest.mark.parametrize("lora", [None, LoraSettings(rank=2)], ids=["full", "lora"])
def test_along_one_token_the_kl_is_the_sum_over_the_vocabulary(tiny_model_dir: Path, lora: LoraSettings | None) -> None:
    trainee = moved(tiny_model_dir, lora)
    every = [(PROMPT, (token,)) for token in range(trainee.policy.vocab_size)]
    ours = answer_logprobs(trainee.model, every, SETTINGS, DEVICES).double()
    with trainee.reference() as reference:
        theirs = answer_logprobs(reference, every, SETTINGS, DEVICES).double()
    exact = float((ours.exp() * (ours - theirs)).sum())
    assert float(ours.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert exact > 1e-3
    # Whichever token was drawn.
    found = answer_kls(trainee, [(PROMPT, (5,)), (PROMPT, (11,))], SETTINGS, DEVICES)
    assert found.tolist() == pytest.approx([exact, exact], rel=1e-3)


def test_over_whole_responses_it_agrees_with_k1_and_varies_less(tiny_model_dir: Path) -> None:
    trainee = moved(tiny_model_dir, None)
    settings = SamplingSettings(max_new_tokens=6)
    drawn = draw_responses(trainee.policy, [PROMPT] * 400, settings, 0, 0, DEVICES)
    answers = [(each.prompt, each.token_ids) for each in drawn]
    along = answer_kls(trainee, answers, settings, DEVICES)
    ours = answer_logprobs(trainee.model, answers, settings, DEVICES)
    with trainee.reference() as reference:
        k1 = ours - answer_logprobs(reference, answers, settings, DEVICES)
    difference = k1 - along
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / len(answers) ** 0.5
    assert float(along.var()) < 0.25 * float(k1.var())
    assert float(along.min()) >= 0.0


def test_an_update_larger_than_the_horizon_does_not_turn_the_penalty_into_a_reward() -> None:
    # 2048 episodes on a horizon of 300 count as 300: 1 - .2, not 1 - .2 x 6.8.
    assert adapt_kl_coef(0.05, 0.0, target=6.0, episodes=2048, horizon=300.0) == pytest.approx(0.04)


def test_chunks_of_logits_change_no_kl(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainee = moved(tiny_model_dir, None)
    answers = [(PROMPT, tuple(range(5, 5 + length))) for length in (1, 7, 4)]
    whole = answer_kls(trainee, answers, SETTINGS, DEVICES)
    monkeypatch.setattr("rlhf_core.learning.answer_logprobs.LOGITS_AT_ONCE", 3 * trainee.policy.vocab_size)
    torch.testing.assert_close(answer_kls(trainee, answers, SETTINGS, DEVICES), whole)
