"""PPO on problems whose best policy is known in closed form: pi* is proportional to ref * exp(reward /
kl_coef).

Everything is real, the engine included; only the language is tiny. Also here: what PPO must leave alone, and
a deliberate mistake (the k3 estimator in the reward) that has to end up elsewhere, or these tests could not
tell right from wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from rlhf_core.learning.kl import estimate_kl
from rlhf_core.learning.ppo import PPOResult, ScoreFunction, train_ppo
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.trainable import make_trainable
from rlhf_core.models.value import ValueHead
from rlhf_core.runs.proofs_training import uniform_policy
from tests.rlhf_core.learning.bandit import ARMS, KL_COEF, PROMPT, arm_scores, distance

TREE = torch.tensor([[1.0, 0.0, 0.0], [0.5, 2.0, -1.0], [0.0, 0.0, 0.3]])

MakePolicy = Callable[..., LoadedPolicy]


@pytest.fixture
def make_policy(tiny_policy: LoadedPolicy) -> MakePolicy:
    """(vocab_size, end_token_ids) -> a one-layer Llama whose distribution starts uniform; always the same
    one.
    """

    def make(vocab_size: int, end_token_ids: frozenset[int] = frozenset()) -> LoadedPolicy:
        return uniform_policy(tiny_policy, vocab_size, end_token_ids)

    return make


def train(
    policy: LoadedPolicy, reference: LoadedPolicy, score: ScoreFunction, seed: int = 0, **changes: object
) -> PPOResult:
    """PPO with big steps and nothing that would hold them back."""
    settings = {
        "updates": 40,
        "rollouts": 128,
        "epochs": 1,
        "minibatch_size": 128,
        "learning_rate": 1e-2,
        "value_learning_rate": 1e-2,
        "kl_coef": KL_COEF,
        "target_kl": 1e9,
        "kl_budget": 1e9,
        "missing_end_penalty": 0.0,
        "max_new_tokens": 1,
        "sampler_slots": 128,
        "least_entropy": 0.0,
        "least_end_rate": 0.0,
        "shortest": 0.0,
        "score_clip": 1e9,
    } | changes
    head = settings.pop("value_head", None)
    prompts = settings.pop("prompts", [PROMPT])
    trainee = make_trainable(policy, reference=reference)
    return train_ppo(trainee, score, prompts, PPOSettings(**settings), seed, value_head=head)


@torch.no_grad()
def next_token(policy: LoadedPolicy, token_ids: Sequence[int]) -> Tensor:
    """Distribution [V] of the token after `token_ids`."""
    return policy.model(torch.tensor([token_ids])).logits[0, -1].softmax(-1)


def kl_to_uniform(distribution: Tensor) -> float:
    """In nats."""
    return float((distribution * (distribution * len(distribution)).log()).sum())


@pytest.mark.parametrize("seed", [0, 1])
def test_a_bandit_ends_at_its_closed_form_optimum(make_policy: MakePolicy, seed: int) -> None:
    policy, reference = make_policy(4, frozenset(range(4))), make_policy(4, frozenset(range(4)))
    result = train(policy, reference, arm_scores, seed)
    # exp([2, 1, 0, -1]) / (7.3891 + 2.7183 + 1 + .3679).
    optimum = torch.tensor([0.6439, 0.2369, 0.0871, 0.0321])
    assert distance(next_token(policy, PROMPT), optimum) < 0.02
    # The best attainable objective is kl_coef * log E_ref[exp(r / kl_coef)] = .5 * ln(11.4753 / 4) = .5269.
    assert result.metrics[-1]["objective/rlhf_reward"] == pytest.approx(0.5269, abs=0.02)


@pytest.mark.parametrize(("estimator", "reaches_it"), [("k1", True), ("k2", False), ("k3", False)])
def test_of_the_kl_estimators_only_k1_may_enter_the_reward(
    make_policy: MakePolicy, estimator: str, reaches_it: bool
) -> None:
    policy, reference = make_policy(4, frozenset(range(4))), make_policy(4, frozenset(range(4)))

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        drawn = torch.tensor([response[0] for response in responses])
        penalty = estimate_kl(next_token(policy, PROMPT).log()[drawn], torch.full(drawn.shape, -math.log(4)))
        return ARMS[drawn] - KL_COEF * getattr(penalty, estimator)

    train(policy, reference, score, kl_coef=0.0)
    off = distance(next_token(policy, PROMPT), (ARMS / KL_COEF).softmax(-1))
    assert off < 0.02 if reaches_it else off > 0.1


def test_two_token_responses_end_at_the_optimum_of_the_tree(make_policy: MakePolicy) -> None:
    policy, reference = make_policy(3), make_policy(3)

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.stack([TREE[tuple(response)] for response in responses])

    # One layer hardly tells "1" from "1 1", so the prompt ends in the token that is drawn, and so told apart,
    # most.
    prompt = (0, 2, 1)
    result = train(policy, reference, score, prompts=[prompt], updates=60, max_new_tokens=2)
    first = next_token(policy, prompt)
    joint = torch.stack([first[token] * next_token(policy, (*prompt, token)) for token in range(3)])
    # pi* over the nine responses is softmax(TREE / .5); its first-token marginal is [.1329, .8130, .0541].
    assert distance(first, torch.tensor([0.1329, 0.8130, 0.0541])) < 0.03
    assert distance(joint, (TREE / KL_COEF).flatten().softmax(-1).view(3, 3)) < 0.03
    last = result.metrics[-1]
    assert last["objective/kl_seq"] == pytest.approx(1.2892, abs=0.15)
    assert last["objective/rlhf_reward"] == pytest.approx(1.03035, abs=0.05)


def test_a_score_of_minus_the_length_teaches_the_policy_to_end_at_once(make_policy: MakePolicy) -> None:
    policy, reference = make_policy(8, frozenset({1})), make_policy(8, frozenset({1}))

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        return -torch.tensor([float(len(response)) for response in responses]) / 8

    result = train(
        policy, reference, score, updates=15, minibatch_size=32, max_new_tokens=16, kl_coef=0.0, missing_end_penalty=1.0
    )
    # Uniform over 8 with at most 16 tokens: (1 - (7/8)^16) * 8 = 7.06 tokens on average.
    assert result.metrics[0]["objective/response_length"] == pytest.approx(7.06, abs=1.5)
    assert result.metrics[-1]["objective/response_length"] < 1.3
    assert result.metrics[-1]["objective/missing_end_rate"] == 0.0


@pytest.mark.parametrize(("kl_coef", "moves"), [(0.2, True), (20.0, False)])
def test_a_counted_token_is_said_as_often_as_its_kl_allows(
    make_policy: MakePolicy, kl_coef: float, moves: bool
) -> None:
    policy, reference = make_policy(4), make_policy(4)

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        return torch.tensor([response.count(2) / 3 for response in responses])

    result = train(policy, reference, score, max_new_tokens=3, kl_coef=kl_coef, updates=25)
    # Three independent tokens, each worth 1/3: J* = 3 kl_coef ln((3 + e^(1 / (3 kl_coef))) / 4).
    best = 3 * kl_coef * math.log((3 + math.exp(1 / (3 * kl_coef))) / 4)
    last = result.metrics[-1]
    if moves:
        assert last["objective/score"] > result.metrics[0]["objective/score"] + 0.2
    else:
        assert abs(last["objective/kl_k3"]) < 0.01
    # 128 samples: a standard error of the mean score of .02 to .03. By k3, because k1 times 20 is mostly noise.
    reached = [each["objective/score"] - kl_coef * each["objective/kl_k3"] for each in result.metrics]
    assert max(reached) < best + 0.1
    exact = float(next_token(policy, PROMPT)[2])
    assert exact > 0.5 if moves else exact == pytest.approx(0.25, abs=0.03)


def constant_score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    return torch.ones(len(responses))


def test_a_constant_score_moves_no_bandit(make_policy: MakePolicy) -> None:
    policy, reference = make_policy(4, frozenset(range(4))), make_policy(4, frozenset(range(4)))
    train(policy, reference, constant_score, updates=10, epochs=2, minibatch_size=64, learning_rate=3e-3)
    assert kl_to_uniform(next_token(policy, PROMPT)) < 1e-3


def test_a_constant_score_moves_no_language_model_whose_values_know_it(make_policy: MakePolicy) -> None:
    # Lengths vary, some responses do not end, some rows are mostly padding. With every value at 1 and every
    # score at 1 each advantage is 0 but for rounding, and whitening must not blow the rounding up.
    policy, reference = make_policy(8, frozenset({1})), make_policy(8, frozenset({1}))
    head = ValueHead(16)
    torch.nn.init.ones_(head.linear.bias)
    result = train(
        policy,
        reference,
        constant_score,
        updates=10,
        epochs=2,
        minibatch_size=64,
        learning_rate=3e-3,
        max_new_tokens=12,
        value_head=head,
    )
    assert result.metrics[0]["objective/missing_end_rate"] > 0.05
    assert abs(result.metrics[-1]["objective/kl_k3"]) < 1e-3
    assert kl_to_uniform(next_token(policy, PROMPT)) < 1e-3


def test_the_value_head_learns_scores_that_the_prompt_decides(make_policy: MakePolicy) -> None:
    policy, reference = make_policy(4), make_policy(4)

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        return ARMS[[prompt[0] for prompt in prompts]]

    prompts = [(arm, 0) for arm in range(4)]
    result = train(policy, reference, score, prompts=prompts, max_new_tokens=3, value_coef=1.0, value_clip_range=1.0)
    assert result.metrics[0]["value/explained_variance"] == pytest.approx(0.0, abs=1e-6)
    assert result.metrics[-1]["value/explained_variance"] > 0.9
