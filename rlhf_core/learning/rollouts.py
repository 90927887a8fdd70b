"""Rollouts: responses drawn from the policy, with everything PPO learns from measured on them.

`sample` asks the engine for responses; `measure` runs policy and reference over them with the trainer's own
forward pass, because ratios must compare like with like, and turns scores into advantages. Token ids come
from the engine as they are; nothing here knows text, and nothing here trains.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.errors import TrainingError
from rlhf_core.learning.advantages import gae, shape_scores, token_rewards, whiten_advantages
from rlhf_core.learning.analyse import Analysis, TokenBatch, analyse
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.models.value import ValueHead
from rlhf_core.records import FinishReason, Sampling

TokenIds = tuple[int, ...]


class GeneratedSequence(Protocol):
    """What sampling reads of a finished engine sequence."""

    @property
    def token_ids(self) -> list[int]: ...

    @property
    def logprobs(self) -> list[float]: ...

    @property
    def finish_reason(self) -> FinishReason | None: ...


class Generator(Protocol):
    """The one verb that sampling needs of `rlhf_core.engine.engine.Engine`."""

    def generate(self, requests: Iterable[GenerationRequest]) -> Sequence[GeneratedSequence]:
        """Finished sequences, in the order of the requests."""


@dataclass(frozen=True, slots=True)
class SampledResponse:
    """One response as the engine gave it."""

    prompt: TokenIds
    token_ids: TokenIds
    """With the end token, where the policy emitted it."""
    logprobs: tuple[float, ...]
    """Per response token, under the distribution that was sampled."""
    ended: bool

    @property
    def length(self) -> int:
        """Prompt and response together."""
        return len(self.prompt) + len(self.token_ids)


def sample(engine: Generator, prompts: Sequence[TokenIds], sampling: Sampling) -> list[SampledResponse]:
    """One response per prompt. Raises TrainingError when `sampling` would make logprobs differ from the
    model's own."""
    if sampling.top_p != 1.0 or sampling.top_k != 0 or sampling.stop or sampling.temperature <= 0.0:
        raise TrainingError(f"rollouts need untruncated sampling without stop strings, not {sampling}")
    requests = [
        GenerationRequest(request_id=f"rollout-{at}", prompt_token_ids=prompt, sampling=sampling, decode_text=False)
        for at, prompt in enumerate(prompts)
    ]
    sequences = engine.generate(requests)
    return [
        SampledResponse(prompt, tuple(one.token_ids), tuple(one.logprobs), one.finish_reason == "stop")
        for prompt, one in zip(prompts, sequences, strict=True)
    ]


@dataclass(frozen=True, slots=True, eq=False)
class Rollouts:
    """B responses of at most R tokens, measured before the update that learns from them. [B, R] is zero
    outside the mask."""

    responses: list[SampledResponse]
    batch: TokenBatch
    scores: Tensor
    """[B], as the reward model gave them."""
    shaped_scores: Tensor
    """[B], clipped and less the penalty for not ending: what enters the reward."""
    sampled_logprobs: Tensor
    """[B, R], the engine's."""
    logprobs: Tensor
    """[B, R], the trainer's, of the policy that sampled; the `old_logprobs` of the ratios."""
    ref_logprobs: Tensor
    entropy: Tensor
    values: Tensor
    rewards: Tensor
    raw_advantages: Tensor
    """[B, R], before whitening."""
    advantages: Tensor
    """[B, R], whitened over all counted tokens."""
    returns: Tensor
    weights: Tensor
    """[B, R], importance weight of each token: min(exp(logprob - sampled_logprob), cap)."""

    @property
    def lengths(self) -> list[int]:
        """Tokens of each prompt with its response."""
        return [one.length for one in self.responses]


def measure(
    responses: Sequence[SampledResponse],
    scores: Tensor,
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    value_head: ValueHead,
    settings: PPOSettings,
    kl_coef: float,
) -> Rollouts:
    """Everything PPO needs to know of `responses` and their `scores` [B], in one policy and one reference
    pass; no gradient."""
    batch = TokenBatch.of([(one.prompt, one.token_ids) for one in responses], policy.device)
    lengths = [one.length for one in responses]
    ours = analyse_all(policy, batch, lengths, settings, value_head)
    theirs = analyse_all(reference, batch, lengths, settings)
    sampled = _padded([one.logprobs for one in responses], batch.response_mask)
    ended = torch.tensor([one.ended for one in responses], device=policy.device)
    shaped = shape_scores(
        scores, ended, score_clip=settings.score_clip, missing_end_penalty=settings.missing_end_penalty
    )
    mask = batch.response_mask
    rewards = token_rewards(shaped, ours.logprobs, theirs.logprobs, mask, kl_coef=kl_coef)
    raw = gae(rewards, ours.values, mask, gamma=settings.gamma, gae_lambda=settings.gae_lambda)
    return Rollouts(
        responses=list(responses),
        batch=batch,
        scores=scores,
        shaped_scores=shaped,
        sampled_logprobs=sampled,
        logprobs=ours.logprobs,
        ref_logprobs=theirs.logprobs,
        entropy=ours.entropy,
        values=ours.values,
        rewards=rewards,
        raw_advantages=raw.advantages,
        advantages=whiten_advantages(raw.advantages, mask),
        returns=raw.returns,
        weights=torch.exp(ours.logprobs - sampled).clamp_max(settings.importance_cap),
    )


@torch.no_grad()
def analyse_all(
    model: PreTrainedModel,
    batch: TokenBatch,
    lengths: Sequence[int],
    settings: PPOSettings,
    value_head: ValueHead | None = None,
) -> Analysis:
    """`analyse` over a batch of any size, in microbatches of similar length; entropy only beside values."""
    zeros = torch.zeros(batch.response_mask.shape, device=batch.input_ids.device)
    whole = Analysis(zeros, zeros.clone(), zeros.clone())
    for group in plan_microbatches(lengths, range(len(lengths)), settings.microbatch_tokens):
        index = torch.tensor(group, device=batch.input_ids.device)
        part = analyse(
            model,
            batch.rows(index),
            temperature=settings.temperature,
            value_head=value_head,
            with_entropy=value_head is not None,
        )
        for into, piece in zip(whole, part, strict=True):
            into[index, : piece.shape[1]] = piece
    return whole


def _padded(values: Sequence[Sequence[float]], response_mask: Tensor) -> Tensor:
    """One float per response token laid out as [B, R]."""
    padded = torch.zeros(response_mask.shape)
    for row, numbers in enumerate(values):
        padded[row, : len(numbers)] = torch.tensor(numbers)
    return padded.to(response_mask.device)


def plan_microbatches(lengths: Sequence[int], rows: Iterable[int], max_tokens: int) -> list[list[int]]:
    """Cut `rows` into groups of similar length, each at most `max_tokens` padded tokens (or one row): little
    is padding.

    `lengths[row]` is the row's prompt and response together.
    """
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda at: -lengths[at]):
        # Longest first, so the first row of a group decides the width of all.
        if not groups or (len(groups[-1]) + 1) * lengths[groups[-1][0]] > max_tokens:
            groups.append([])
        groups[-1].append(row)
    return groups


def padding_fraction(lengths: Sequence[int], groups: Sequence[Sequence[int]]) -> float:
    """Share of the tokens of all groups that is padding."""
    padded = sum(len(group) * max(lengths[row] for row in group) for group in groups)
    return 1.0 - sum(lengths[row] for group in groups for row in group) / padded
