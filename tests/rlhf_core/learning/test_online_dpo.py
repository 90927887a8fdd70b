"""Online DPO: what a bandit ends at, how a score orders pairs, and the loop's invariants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from rlhf_core.learning.alternatives_settings import OnlineDPOSettings
from rlhf_core.learning.answer_logprobs import ReadAnswer
from rlhf_core.learning.fresh_responses import Drawn, FreshResponses
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.online_dpo import ordered_pairs, train_online_dpo
from rlhf_core.learning.rollouts import SampledResponse
from rlhf_core.learning.training_state import TrainingState
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.trainable import make_trainable
from tests.rlhf_core.learning.bandit import PROMPT, arm_probabilities, arm_scores, bandit_policy

PROMPTS = [tuple(range(5 + start, 5 + start + length)) for start, length in enumerate((1, 4, 2, 9, 6, 3))]
SMALL = OnlineDPOSettings(updates=3, rollouts=12, minibatch_size=4, max_new_tokens=8, learning_rate=1e-3, kl_budget=1e9)


def low_tokens(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.tensor([sum(token < 100 for token in response) / len(response) for response in responses])


def untimed(metrics: list[Metrics]) -> list[Metrics]:
    return [{name: value for name, value in one.items() if not name.startswith("time/")} for one in metrics]


def test_the_bandit_ends_with_the_best_arm_on_top(tiny_policy: LoadedPolicy) -> None:
    trainee = make_trainable(bandit_policy(tiny_policy))
    settings = OnlineDPOSettings(
        updates=15, rollouts=128, minibatch_size=64, learning_rate=2e-2, kl_coef=0.5, max_new_tokens=1, temperature=1.0
    )
    metrics = train_online_dpo(trainee, arm_scores, [PROMPT], settings, 0)
    arms = arm_probabilities(trainee.policy)
    # A score always orders alike, however little it differs, so DPO goes on beyond exp(score / kl_coef).
    assert arms.argsort(descending=True).tolist()[:2] == [0, 1]
    assert float(arms[0]) > 0.6439
    assert metrics[-1]["objective/score"] > metrics[0]["objective/score"] + 0.2


def fresh_of(scores: Sequence[float], answers: Sequence[tuple[int, ...]]) -> FreshResponses:
    responses = [SampledResponse((7,), answer, (-1.0,) * len(answer), True) for answer in answers]
    reference = [torch.full((len(answer),), -float(at)) for at, answer in enumerate(answers)]
    read = [ReadAnswer(each, each) for each in reference]
    values = torch.tensor(scores)
    return FreshResponses(Drawn(responses, values, values), read, reference)


def test_the_better_score_is_chosen_and_equals_are_left_out() -> None:
    fresh = fresh_of([0.1, 0.9, 0.5, 0.5 + 1e-7, 0.3, 0.2], [(1,), (2, 3), (4,), (5,), (6,), (6,)])
    [pair] = ordered_pairs(fresh)
    assert (pair.prompt, pair.chosen, pair.rejected) == ((7,), (2, 3), (1,))
    # Reference logprobs of the answers at 1 and 0: 2 tokens of -1 each, 1 token of 0.
    assert (pair.ref_chosen, pair.ref_rejected) == (-2.0, 0.0)


def test_before_the_first_step_the_policy_is_its_reference(tiny_model_dir: Path) -> None:
    metrics = train_online_dpo(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, SMALL, 0)
    assert metrics[0]["objective/kl_seq"] == 0.0
    assert metrics[-1]["objective/kl_k3"] > 0.0
    assert 0 < metrics[0]["rollout/pairs"] <= 6
    # The engine draws at .9, and so the trainer reads at .9.
    assert metrics[0]["rollout/logprob_gap_max"] < 1e-4


def test_equal_scores_leave_the_policy_as_it_was(tiny_policy: LoadedPolicy) -> None:
    trainee = make_trainable(bandit_policy(tiny_policy))
    before = {name: value.clone() for name, value in trainee.model.state_dict().items()}
    settings = msgspec.structs.replace(SMALL, max_new_tokens=1)
    metrics = train_online_dpo(trainee, lambda p, r: torch.ones(len(r)), [PROMPT], settings, 0)
    assert [each["rollout/pairs"] for each in metrics] == [0.0, 0.0, 0.0]
    assert all(torch.equal(before[name], value) for name, value in trainee.model.state_dict().items())


def test_the_kl_budget_ends_the_training(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, updates=8, learning_rate=1e-2, kl_budget=0.05)
    metrics = train_online_dpo(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert len(metrics) < 8
    assert metrics[-1]["stopped"] == 1.0


def test_a_training_that_is_resumed_ends_at_the_same_bits(tiny_model_dir: Path) -> None:
    whole, kept = make_trainable(load_policy(tiny_model_dir)), list[TrainingState]()
    metrics = train_online_dpo(whole, low_tokens, PROMPTS, SMALL, 3, Hooks(keep=kept.append))
    resumed = make_trainable(load_policy(tiny_model_dir))
    rest = train_online_dpo(resumed, low_tokens, PROMPTS, SMALL, 3, Hooks(resume=kept[0]))
    assert untimed(rest) == untimed(metrics[1:])
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize("temperature", [0.9, 1.0])
def test_a_pair_starts_at_a_margin_of_zero(tiny_model_dir: Path, temperature: float) -> None:
    settings = msgspec.structs.replace(SMALL, temperature=temperature, updates=1, minibatch_size=64)
    [metrics] = train_online_dpo(make_trainable(load_policy(tiny_model_dir)), low_tokens, PROMPTS, settings, 0)
    assert metrics["preference/margin"] == pytest.approx(0.0, abs=1e-5)
