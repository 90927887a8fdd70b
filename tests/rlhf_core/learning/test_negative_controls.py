"""Deliberate bugs, each of which must turn a check red: a check that passes a broken variant proves nothing.

Every check is a function that holds for the right implementation and fails for the broken one beside it. They are the
checks that the tests and the run's own invariants make elsewhere, on something that can be swapped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.errors import ModelError, TrainingError
from rlhf_core.learning.advantages import token_rewards
from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.kl import estimate_kl, response_kl
from rlhf_core.learning.losses import ppo_policy_loss
from rlhf_core.learning.masked import masked_mean
from rlhf_core.learning.ppo import train_ppo
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.ppo_update import Learner
from rlhf_core.learning.rollouts import Generator, Rollouts, measure, sample
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.trainable import Trainable, make_trainable
from rlhf_core.models.value import ValueHead
from rlhf_core.records import Sampling
from tests.rlhf_core.learning.bandit import ARMS, KL_COEF, OPTIMUM, PROMPT, arm_probabilities, bandit_policy, distance

PROMPTS = [tuple(range(5, 6 + length)) for length in (1, 4, 2, 9)]
SETTINGS = PPOSettings(temperature=0.7, minibatch_size=2)


@pytest.fixture
def trainee(tiny_model_dir: Path) -> Trainable:
    return make_trainable(load_policy(tiny_model_dir))


def rollouts_of(trainee: Trainable, settings: PPOSettings = SETTINGS) -> Rollouts:
    engine = Engine(trainee.policy, max_running=4, max_waiting=8, max_context=32)
    sampling = Sampling(temperature=settings.temperature, max_tokens=8)
    responses = sample(engine, PROMPTS, sampling, seeds=range(4))
    return measure(responses, torch.tensor([1.0, -1.0, 0.5, 0.0]), trainee, ValueHead(32), settings, 0.05)


# The run's own invariant: the first minibatch finds the policy where it sampled.


@pytest.mark.parametrize("bug", ["none", "temperature omitted", "weights moved"])
def test_the_first_ratios_catch(bug: str, trainee: Trainable) -> None:
    rollouts, settings = rollouts_of(trainee), SETTINGS
    if bug == "temperature omitted":
        settings = PPOSettings(temperature=1.0, minibatch_size=2)
    if bug == "weights moved":
        with torch.no_grad():
            trainee.model.lm_head.weight.mul_(1.02)
    learner = Learner(trainee, ValueHead(32), settings)
    if bug == "none":
        assert learner.improve(rollouts, 0)["policy/ratio_first_minibatch"] == 0.0
        return
    with pytest.raises(TrainingError, match="before the first step of an update ratios differ from 1 by up to"):
        learner.improve(rollouts, 0)


def test_dropout_left_on_is_named(trainee: Trainable) -> None:
    learner, rollouts = Learner(trainee, ValueHead(32), SETTINGS), rollouts_of(trainee)
    for layer in trainee.model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    trainee.model.train()
    with pytest.raises(ModelError, match=r"LlamaAttention drops out 0\.3 of its attention"):
        learner.improve(rollouts, 0)


# The mean over counted tokens: padding appended to a batch changes nothing.

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def right_loss(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    return ppo_policy_loss(logprobs, old, advantages, mask, clip_range=0.2).loss


def unmasked_mean(logprobs: Tensor, old: Tensor, advantages: Tensor, mask: Tensor) -> Tensor:
    ratio = (logprobs - old).exp()
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)).mean()


@pytest.mark.parametrize(("loss", "holds"), [(right_loss, True), (unmasked_mean, False)])
def test_padding_catches_an_unmasked_mean(loss: Loss, holds: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    logprobs, old, advantages = (0.2 * torch.randn(3, 4, generator=draw) for _ in range(3))
    mask = torch.ones(3, 4, dtype=torch.bool)
    padded = [torch.nn.functional.pad(each, (0, 3)) for each in (logprobs, old, advantages, mask)]
    same = torch.allclose(loss(*padded), loss(logprobs, old, advantages, mask), atol=1e-6)
    assert same == holds


# The placement of the score: on the last counted token, and all of it.

Rewards = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def right_rewards(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    return token_rewards(scores, logprobs, ref_logprobs, mask, kl_coef=0.5)


def one_too_late(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    rewards = -0.5 * (logprobs - ref_logprobs) * mask
    after = mask.sum(-1, keepdim=True).clamp_max(mask.shape[1] - 1)
    return rewards.scatter_add(-1, after, scores[:, None])


def one_too_early(scores: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    rewards = -0.5 * (logprobs - ref_logprobs) * mask
    return rewards.scatter_add(-1, (mask.sum(-1, keepdim=True) - 2).clamp_min(0), scores[:, None])


@pytest.mark.parametrize(("rewards", "holds"), [(right_rewards, True), (one_too_late, False), (one_too_early, False)])
def test_the_place_of_the_score_catches_an_off_by_one(rewards: Rewards, holds: bool) -> None:
    lengths = [1, 2, 4]
    mask = torch.arange(4) < torch.tensor(lengths)[:, None]
    logprobs, ref_logprobs = torch.full((3, 4), -1.0), torch.full((3, 4), -1.2)
    placed = rewards(torch.tensor([3.0, 3.0, 3.0]), logprobs, ref_logprobs, mask)
    # Score 3 and a penalty of .5 * .2 = .1 a token: 2.9 on the last, -.1 on those before, nothing behind.
    expected = [[-0.1] * (length - 1) + [2.9] + [0.0] * (4 - length) for length in lengths]
    assert torch.allclose(placed, torch.tensor(expected)) == holds


# The known optimum of a bandit, which every part of the loop has to be right to reach.


class Greedy:
    """A sampler that takes the most probable token, and says that it drew it."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def generate(self, requests: Sequence[GenerationRequest]) -> Any:
        return self.engine.generate(
            [dataclasses.replace(each, sampling=Sampling(temperature=0.0, max_tokens=1)) for each in requests]
        )


def bandit_distance(tiny_policy: LoadedPolicy, bug: str) -> float:
    """Total variation between the optimum and where PPO ends."""
    policy, reference = bandit_policy(tiny_policy), bandit_policy(tiny_policy)
    trainee = make_trainable(policy, reference=reference)
    if bug == "stale reference":  # it follows the policy, so nothing holds the policy back
        trainee = dataclasses.replace(trainee, frozen=policy.model)

    def score(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
        drawn = torch.tensor([response[0] for response in responses])
        if bug != "k3 in the reward":
            return ARMS[drawn]
        penalty = estimate_kl(arm_probabilities(policy).log()[drawn], arm_probabilities(reference).log()[drawn])
        return ARMS[drawn] - KL_COEF * penalty.k3

    engine = Engine(trainee.policy, max_running=128, max_waiting=128, max_context=4)
    sampler: Generator = Greedy(engine) if bug == "greedy rollouts" else engine
    settings = PPOSettings(
        updates=40,
        rollouts=128,
        epochs=1,
        minibatch_size=128,
        learning_rate=1e-2,
        kl_coef=0.0 if bug == "k3 in the reward" else KL_COEF,
        target_kl=1e9,
        kl_budget=1e9,
        max_new_tokens=1,
        least_entropy=0.0,
    )
    train_ppo(trainee, score, [PROMPT], settings, 0, engine=sampler)
    return distance(arm_probabilities(policy), OPTIMUM)


@pytest.mark.parametrize("bug", ["none", "k3 in the reward", "greedy rollouts", "stale reference"])
def test_the_optimum_of_a_bandit_catches(bug: str, tiny_policy: LoadedPolicy) -> None:
    off = bandit_distance(tiny_policy, bug)
    assert off < 0.02 if bug == "none" else off > 0.1


# The KL that is reported is that of the responses at hand, under the reference as it is.


@pytest.mark.parametrize("stale", [False, True])
def test_a_fresh_look_at_the_reference_catches_stale_logprobs(stale: bool, trainee: Trainable) -> None:
    before = rollouts_of(trainee)
    with torch.no_grad():
        for parameter in trainee.parameters:
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    trainee.refresh()
    rollouts = rollouts_of(trainee)
    if stale:
        width = rollouts.ref_logprobs.shape[1]
        kept = torch.nn.functional.pad(before.ref_logprobs, (0, max(0, width - before.ref_logprobs.shape[1])))
        rollouts = dataclasses.replace(rollouts, ref_logprobs=kept[:, :width])
    batch = TokenBatch.of([(one.prompt, one.token_ids) for one in rollouts.responses])
    with trainee.reference() as reference, torch.no_grad():
        fresh = analyse(reference, batch, temperature=SETTINGS.temperature).logprobs
    mask = batch.response_mask
    reported = response_kl(estimate_kl(rollouts.logprobs, rollouts.ref_logprobs).k1, mask)
    exact = response_kl(estimate_kl(rollouts.logprobs, fresh).k1, mask)
    assert (abs(float(reported - exact)) < 1e-4) == (not stale)


# What the engine says it drew is what the trainer computes: the mean absolute difference of their logprobs.


@pytest.mark.parametrize(("bug", "holds"), [("none", True), ("temperature omitted", False), ("greedy rollouts", False)])
def test_the_gap_of_engine_and_trainer_catches(bug: str, holds: bool, trainee: Trainable) -> None:
    engine = Engine(trainee.policy, max_running=4, max_waiting=8, max_context=32)
    temperature = {"none": 0.7, "temperature omitted": 1.0, "greedy rollouts": 0.0}[bug]
    sequences = engine.generate(
        GenerationRequest(f"r{at}", prompt, Sampling(temperature=temperature, max_tokens=8), decode_text=False)
        for at, prompt in enumerate(PROMPTS)
    )
    batch = TokenBatch.of([(each.request.prompt_token_ids, tuple(each.token_ids)) for each in sequences])
    with torch.no_grad():
        ours = analyse(trainee.model, batch, temperature=0.7).logprobs
    theirs = torch.zeros_like(ours)
    for row, each in enumerate(sequences):
        theirs[row, : len(each.logprobs)] = torch.tensor(each.logprobs)
    assert (float(masked_mean((ours - theirs).abs(), batch.response_mask)) < 1e-4) == holds
