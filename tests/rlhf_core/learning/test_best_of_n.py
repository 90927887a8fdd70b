"""Best-of-N: its score and KL by hand and by enumeration, its table beside a trained policy, and what it teaches."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from rlhf_core.learning.alternatives_settings import BestOfNSettings
from rlhf_core.learning.best_of_n import (
    BestOfN,
    best_answers,
    compare,
    expected_best,
    kl_bound,
    measure_best_of_n,
    n_at,
    train_best_of_n,
)
from rlhf_core.learning.fresh_responses import Drawn
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.rollouts import SampledResponse
from rlhf_core.learning.training_state import TrainingState
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.trainable import make_trainable
from tests.rlhf_core.learning.bandit import PROMPT, arm_probabilities, arm_scores, bandit_policy, distance

PROMPTS = [tuple(range(5 + start, 5 + start + length)) for start, length in enumerate((1, 4, 2, 9, 6, 3))]
SMALL = BestOfNSettings(updates=2, rollouts=12, candidates=3, minibatch_size=2, max_new_tokens=8, learning_rate=1e-3)


def low_tokens(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.tensor([sum(token < 100 for token in response) / len(response) for response in responses])


def test_the_kl_of_best_of_n_is_known() -> None:
    # log 4 - 3/4 = 1.386294 - .75; log 16 - 15/16 = 2.772589 - .9375.
    assert [kl_bound(n) for n in (1, 4, 16)] == pytest.approx([0.0, 0.636294, 1.835089], abs=1e-6)
    assert n_at(kl_bound(4)) == pytest.approx(4.0)
    assert n_at(0.0) == pytest.approx(1.0, abs=1e-4)


def test_the_bound_holds_and_is_nearly_met_by_many_different_scores() -> None:
    # 1000 equally likely responses in order of score: the best of n is the k-th with (k^n - (k-1)^n) / 1000^n.
    for n in (2, 4, 8):
        ranks = torch.arange(1, 1001, dtype=torch.float64) / 1000
        kept = ranks**n - (ranks - 1 / 1000) ** n
        kl = float((kept * (kept * 1000).log()).sum())
        assert kl <= kl_bound(n)
        assert kl == pytest.approx(kl_bound(n), abs=0.01)


def test_the_expected_best_is_the_mean_over_all_choices() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 7.0], [0.0, 0.0, 1.0, 1.0]])
    # Best of 2 of 1, 2, 3, 7: (2 + 3 + 7 + 3 + 7 + 7) / 6 = 29 / 6; of 0, 0, 1, 1: 5 / 6.
    assert expected_best(scores, 2).tolist() == pytest.approx([29 / 6, 5 / 6])
    for n in range(1, 5):
        choices = [max(chosen) for chosen in itertools.combinations(scores[0].tolist(), n)]
        assert float(expected_best(scores, n)[0]) == pytest.approx(sum(choices) / len(choices))


def test_the_mistake_of_taking_the_first_n_of_sorted_scores_would_show() -> None:
    scores = torch.tensor([[3.0, 1.0, 2.0, 7.0]])
    assert float(scores.sort(-1).values[:, :2].max()) != pytest.approx(float(expected_best(scores, 2)))


def test_best_of_n_of_a_bandit_is_what_probability_says(tiny_policy: LoadedPolicy) -> None:
    settings = BestOfNSettings(candidates=4, max_new_tokens=1, sampler_slots=256)
    table = measure_best_of_n(bandit_policy(tiny_policy), arm_scores, [PROMPT] * 400, settings, 0)
    # P(best of n <= k-th worst) = (k / 4)^n over scores -.5, 0, .5, 1: mean 1 - .5 (.25^n + .5^n + .75^n).
    for row in table:
        assert row.score == pytest.approx(1 - 0.5 * (0.25**row.n + 0.5**row.n + 0.75**row.n), abs=0.05)
    assert [row.n for row in table] == [1, 2, 3, 4]


def test_a_policy_stands_beside_best_of_n_at_its_own_kl() -> None:
    table = [BestOfN(1, 0.0, 0.0), BestOfN(2, 1.0, kl_bound(2)), BestOfN(3, 1.5, kl_bound(3))]
    # Half way in KL between 2 and 3 the score is 1.25.
    between = compare(table, score=2.0, kl=(kl_bound(2) + kl_bound(3)) / 2)
    assert between.best_of_n == pytest.approx(1.25)
    assert 2 < between.n < 3
    assert not between.beyond
    assert "best of 2." in str(between)
    far = compare(table, score=2.0, kl=5.0)
    assert (far.best_of_n, far.n, far.beyond) == (1.5, 3.0, True)
    assert str(far) == "score 2.000 at KL 5.00; best of 3, which moves less: 1.500"
    assert compare(table, score=0.0, kl=-0.01).best_of_n == 0.0


def test_the_best_of_each_group_is_kept_and_the_first_of_equals() -> None:
    responses = [SampledResponse((group,), (at,), (0.0,), True) for group in range(2) for at in range(3)]
    scores = torch.tensor([0.0, 2.0, 1.0, 4.0, 4.0, 3.0])
    assert best_answers(Drawn(responses, scores, scores), 3) == [((0,), (1,)), ((1,), (0,))]


def test_rejection_fine_tuning_ends_at_best_of_n_itself(tiny_policy: LoadedPolicy) -> None:
    # One update from a uniform bandit: the kept arm is the best of 2 with probabilities 7/16, 5/16, 3/16, 1/16.
    trainee = make_trainable(bandit_policy(tiny_policy))
    settings = BestOfNSettings(
        candidates=2, rollouts=1600, minibatch_size=400, epochs=40, learning_rate=1e-2, max_new_tokens=1,
        sampler_slots=400, microbatch_tokens=4096,
    )  # fmt: skip
    train_best_of_n(trainee, arm_scores, [PROMPT], settings, 0)
    arms = arm_probabilities(trainee.policy)
    assert distance(arms, torch.tensor([7.0, 5.0, 3.0, 1.0]) / 16) < 0.04
    kl = float((arms * (arms * 4).log()).sum())
    assert kl < kl_bound(2) + 0.05


def test_what_is_taught_is_the_mean_logprob_of_the_kept_tokens(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, updates=1, minibatch_size=64)
    [metrics] = train_best_of_n(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert metrics["policy/steps"] == 1
    assert metrics["objective/best_score"] > metrics["objective/score"] - metrics["objective/missing_end_rate"]
    assert 0 < metrics["policy/loss"] < math.log(300) + 5


def untimed(metrics: list[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in one.items() if not name.startswith("time/")} for one in metrics]


def test_a_training_that_is_resumed_ends_at_the_same_bits(tiny_model_dir: Path) -> None:
    whole, kept = make_trainable(load_policy(tiny_model_dir)), list[TrainingState]()
    metrics = train_best_of_n(whole, low_tokens, PROMPTS, SMALL, 3, Hooks(keep=kept.append))
    resumed = make_trainable(load_policy(tiny_model_dir))
    rest = train_best_of_n(resumed, low_tokens, PROMPTS, SMALL, 3, Hooks(resume=kept[0]))
    assert untimed(rest) == untimed(metrics[1:])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


def test_the_kl_budget_ends_the_training(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, updates=8, learning_rate=1e-2, kl_budget=0.05)
    metrics = train_best_of_n(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert len(metrics) < 8
    assert metrics[-1]["stopped"] == 1.0
