"""Proofs about training: PPO that may not move does not, a resumed run repeats to the bit, and a bandit is solved.

The model's own checks train a small LoRA adapter beside its frozen weights, so that they fit wherever the model does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.kl import estimate_kl
from rlhf_core.learning.ppo import train_ppo
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.sft import train_supervised
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.learning.training_state import TrainingState
from rlhf_core.models.attention import ATTENTION, register_attention
from rlhf_core.models.inspection import inspect_attention
from rlhf_core.models.load import LoadedPolicy, probe_prompts
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable
from rlhf_core.records import TokenIds
from rlhf_core.runs.proofs import Proof, probe_documents

ARMS: Final = (1.0, 0.5, 0.0, -0.5)
KL_COEF: Final = 0.5
CLOSE: Final = 0.02
"""Total variation within which the bandit's policy must come to its optimum."""
FREELY: Final = {
    "target_kl": 1e9,
    "kl_budget": 1e9,
    "least_entropy": 0.0,
    "least_end_rate": 0.0,
    "shortest": 0.0,
    "longest": 1e9,
    "missing_end_penalty": 0.0,
}
"""PPO without anything that would end it early."""


def prove_training(policy: LoadedPolicy) -> Iterator[Proof]:
    """PPO that must not move, and a resume, on an adapter put on `policy.model` in place."""
    trainable = make_trainable(policy, LoraSettings(rank=2, alpha=4.0), seed=0)
    yield from _prove_resume(trainable)
    yield from _prove_stillness(trainable)


def _prove_stillness(trainable: Trainable) -> Iterator[Proof]:
    before = _weights(trainable)
    metrics = _small_ppo(trainable, 0.0)
    yield Proof("PPO: first ratios differ from 1 by", metrics["policy/ratio_first_minibatch"], 1e-4)
    yield Proof("PPO: approximate KL at learning rate 0, nats", abs(metrics["policy/approx_kl"]), 1e-8)
    yield Proof("PPO: weights changed at learning rate 0", _changed(before, _weights(trainable)), 0.0)
    _small_ppo(trainable, 1e-2)
    yield Proof("  control: at learning rate 0.01", _changed(before, _weights(trainable)), 0.0, True)


def _small_ppo(trainable: Trainable, learning_rate: float) -> Metrics:
    """One update of a few short rollouts."""
    settings = PPOSettings(
        updates=1,
        rollouts=8,
        epochs=2,
        minibatch_size=4,
        max_new_tokens=12,
        learning_rate=learning_rate,
        value_learning_rate=learning_rate,
        **FREELY,  # type: ignore[arg-type]
    )
    prompts = probe_prompts(trainable.policy.tokenizer)
    return train_ppo(trainable, _first_tokens, prompts, settings, 0).metrics[0]


def _first_tokens(_prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Tensor:
    """A score that tells any two different answers apart."""
    return torch.tensor([math.sin(sum(response)) for response in responses])


def _prove_resume(trainable: Trainable) -> Iterator[Proof]:
    """Four optimizer steps at once, against two, a stop, and two."""
    start, kept = _weights(trainable), list[TrainingState]()
    _fine_tune(trainable, Hooks(keep=kept.append))
    whole = _weights(trainable)
    for name, state, control in (
        ("resume: weights that differ from an unbroken run", kept[1], False),
        ("  control: resumed without the optimizer's moments", _without_moments(kept[1]), True),
    ):
        _put_back(trainable, start)
        _fine_tune(trainable, Hooks(resume=state))
        yield Proof(name, _changed(whole, _weights(trainable)), 0.0, control)
    _put_back(trainable, start)


def _fine_tune(trainable: Trainable, hooks: Hooks) -> None:
    documents = probe_documents(trainable.policy)
    settings = SftSettings(learning_rate=1e-3, epochs=4, row_tokens=64, rows_per_minibatch=4, rows_per_microbatch=4)
    train_supervised(trainable.model, documents, settings, hooks=hooks)


def _without_moments(state: TrainingState) -> TrainingState:
    return dataclasses.replace(
        state, tensors={name: value for name, value in state.tensors.items() if not name.startswith("optimizer/")}
    )


def _weights(trainable: Trainable) -> list[Tensor]:
    return [each.detach().clone() for each in trainable.parameters]


@torch.no_grad()
def _put_back(trainable: Trainable, weights: Sequence[Tensor]) -> None:
    for parameter, value in zip(trainable.parameters, weights, strict=True):
        parameter.copy_(value)


def _changed(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """How many numbers differ, were it by one bit."""
    return float(sum(int((one != other).sum()) for one, other in zip(left, right, strict=True)))


def prove_bandit(policy: LoadedPolicy) -> Iterator[Proof]:
    """PPO on one-token answers with known scores ends at ref * exp(score / kl_coef); with k3 as reward it does not."""
    yield Proof("PPO: bandit, distance from its optimum", _bandit(policy, in_reward=False), CLOSE)
    yield Proof("  control: the k3 estimate in the reward", _bandit(policy, in_reward=True), 0.1, True)


def _bandit(policy: LoadedPolicy, *, in_reward: bool) -> float:
    """Total variation between where PPO ends and the closed-form optimum."""
    arms = torch.tensor(ARMS)
    learner = make_trainable(uniform_policy(policy, len(ARMS)))

    def distribution() -> Tensor:
        with torch.no_grad():
            logits: Tensor = learner.model(torch.tensor([[0]])).logits
        return logits[0, -1].softmax(-1)

    def scores(_prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Tensor:
        drawn = torch.tensor([response[0] for response in responses])
        if not in_reward:
            return arms[drawn]
        penalty = estimate_kl(distribution().log()[drawn], torch.full(drawn.shape, -math.log(len(ARMS)))).k3
        return arms[drawn] - KL_COEF * penalty

    settings = PPOSettings(
        updates=40,
        rollouts=128,
        epochs=1,
        minibatch_size=128,
        learning_rate=1e-2,
        value_learning_rate=1e-2,
        kl_coef=0.0 if in_reward else KL_COEF,
        max_new_tokens=1,
        sampler_slots=128,
        score_clip=1e9,
        **FREELY,  # type: ignore[arg-type]
    )
    train_ppo(learner, scores, [(0,)], settings, 0)
    return float((distribution() - (arms / KL_COEF).softmax(-1)).abs().sum()) / 2


def uniform_policy(policy: LoadedPolicy, tokens: int, ends: frozenset[int] | None = None) -> LoadedPolicy:
    """A Llama of one layer over `tokens` tokens, all equally likely at first; those in `ends`, all for None, end."""
    register_attention()
    config = LlamaConfig(
        vocab_size=tokens,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.3,
        tie_word_embeddings=False,
        attn_implementation=ATTENTION,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    torch.nn.init.zeros_(model.lm_head.weight)
    return dataclasses.replace(
        policy,
        model=model,
        max_context=32,
        end_token_ids=frozenset(range(tokens)) if ends is None else ends,
        attention=inspect_attention(Path("bandit"), model, 32),
        forward=None,
    )
