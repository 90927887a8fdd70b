"""Rollouts: responses drawn from the policy, with everything PPO learns from measured on them.

`sample` asks the engine for responses; `measure` runs policy and reference over them with the trainer's own
forward pass, because ratios must compare like with like, and turns scores into advantages. Token ids come
from the engine as they are; nothing here knows text, and nothing here trains.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.errors import TrainingError
from rlhf_core.learning.advantages import gae, shape_scores, token_rewards, whiten_advantages, whiten_rewards
from rlhf_core.learning.analyse import Analysis, TokenBatch, analyse
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.models.allocation import give_freed_memory_back
from rlhf_core.models.documents import Documents
from rlhf_core.models.value import ValueHead
from rlhf_core.records import FinishReason, Sampling, TokenIds

if TYPE_CHECKING:
    from rlhf_core.learning.devices import Devices
    from rlhf_core.models.trainable import Trainable


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


def prompts_at(prompts: Sequence[TokenIds], positions: Iterable[int], seed: int) -> list[TokenIds]:
    """What stands at `positions` of an endless list: every prompt once in random order, then all again in another.

    Of no prompts, nothing.
    """
    if not prompts:
        return []
    count = len(prompts)
    at = [divmod(position, count) for position in positions]
    turns = {turn for turn, _ in at}
    orders = {turn: random.Random(f"{seed}/prompts/{turn}").sample(range(count), count) for turn in turns}
    return [prompts[orders[turn][place]] for turn, place in at]


def request_seed(seed: int, update: int, index: int) -> int:
    """The seed of one rollout's draws: the same whatever else is sampled beside it, on whichever process."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{update}/{index}".encode(), digest_size=7).digest())


def sample(
    engine: Generator, prompts: Sequence[TokenIds], sampling: Sampling, *, seeds: Sequence[int] | None = None
) -> list[SampledResponse]:
    """One response per prompt, each with its own seed if there are `seeds`. Raises TrainingError when `sampling` would
    make logprobs differ from the model's own."""
    if sampling.top_p != 1.0 or sampling.top_k != 0 or sampling.stop or sampling.temperature <= 0.0:
        raise TrainingError(f"rollouts need untruncated sampling without stop strings, not {sampling}")
    each = (
        [sampling] * len(prompts) if seeds is None else [msgspec.structs.replace(sampling, seed=one) for one in seeds]
    )
    requests = [
        GenerationRequest(request_id=f"rollout-{at}", prompt_token_ids=prompt, sampling=own, decode_text=False)
        for at, (prompt, own) in enumerate(zip(prompts, each, strict=True))
    ]
    give_freed_memory_back()
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
    """[B], what is to be climbed: the reward model's, with weighted axes where there are any."""
    shaped_scores: Tensor
    """[B], clipped and less the penalty for not ending: what enters the reward."""
    sampled_logprobs: Tensor
    """[B, R], the engine's."""
    logprobs: Tensor
    """[B, R], the trainer's, of the policy that sampled; the `old_logprobs` of the ratios."""
    ref_logprobs: Tensor
    served_logprobs: Tensor | None
    """Of the policy that people talk to, where one was given."""
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

    def tokens(self, rows: Iterable[int]) -> int:
        """Counted tokens of the responses `rows`."""
        return sum(len(self.responses[row].token_ids) for row in rows)


def measure(
    responses: Sequence[SampledResponse],
    scores: Tensor,
    trainee: Trainable,
    value_head: ValueHead,
    settings: PPOSettings,
    kl_coef: float,
    *,
    served: PreTrainedModel | None = None,
    devices: Devices | None = None,
) -> Rollouts:
    """Everything PPO needs to know of `responses` and their `scores` [B], in one policy and one reference
    pass; no gradient. Every process has all responses, measures its share, and knows all in the end."""
    device = trainee.model.device
    batch = TokenBatch.of([(one.prompt, one.token_ids) for one in responses], device)
    mask = batch.response_mask
    groups = measuring_groups([one.length for one in responses], settings, devices)
    ours = analyse_all(trainee.model, batch, groups, settings, value_head, devices=devices)
    with trainee.reference() as reference:
        theirs = analyse_all(reference, batch, groups, settings, devices=devices)
    live = None if served is None else analyse_all(served, batch, groups, settings, devices=devices)
    sampled = _padded([one.logprobs for one in responses], mask)
    shaped = shape_scores(
        scores.to(device),
        torch.tensor([one.ended for one in responses], device=device),
        score_clip=settings.score_clip,
        missing_end_penalty=settings.missing_end_penalty,
        missing_end=settings.missing_end,
    )
    rewards = token_rewards(shaped, ours.logprobs, theirs.logprobs, mask, kl_coef=kl_coef)
    if settings.whiten_rewards:
        rewards = whiten_rewards(rewards, mask)
    raw = gae(rewards, ours.values, mask, gamma=settings.gamma, gae_lambda=settings.gae_lambda)
    return Rollouts(
        responses=list(responses),
        batch=batch,
        scores=scores.to(device),
        shaped_scores=shaped,
        sampled_logprobs=sampled,
        logprobs=ours.logprobs,
        ref_logprobs=theirs.logprobs,
        served_logprobs=None if live is None else live.logprobs,
        entropy=ours.entropy,
        values=ours.values,
        rewards=rewards,
        raw_advantages=raw.advantages,
        advantages=whiten_advantages(raw.advantages, mask, floor=settings.whiten_floor),
        returns=raw.returns,
        weights=torch.exp(ours.logprobs - sampled).clamp_max(settings.importance_cap),
    )


def measuring_groups(lengths: Sequence[int], settings: PPOSettings, devices: Devices | None = None) -> list[list[int]]:
    """This process's microbatches of all rollouts: those in which the first epoch of the update will train on them.

    The same rows in the same groups give the same numbers to the last bit, so the first ratios are 1 in any precision.
    """
    size = settings.minibatch_size
    minibatches = [range(start, min(start + size, len(lengths))) for start in range(0, len(lengths), size)]
    return [
        group
        for rows in minibatches
        for group in plan_microbatches(lengths, devices.share(rows) if devices else rows, settings.microbatch_tokens)
    ]


@torch.no_grad()
def analyse_all(
    model: PreTrainedModel,
    batch: TokenBatch,
    groups: Sequence[Sequence[int]],
    settings: PPOSettings,
    value_head: ValueHead | None = None,
    *,
    devices: Devices | None = None,
) -> Analysis:
    """`analyse` over the rows in `groups`, one forward pass each, and the rows of the other processes from them;
    entropy only beside values."""
    whole = torch.zeros(3, *batch.response_mask.shape, device=batch.input_ids.device)
    for group in groups:
        index = torch.tensor(group, device=batch.input_ids.device)
        with devices.autocast() if devices else nullcontext():
            part = analyse(
                model,
                batch.rows(index),
                temperature=settings.temperature,
                value_head=value_head,
                with_entropy=value_head is not None,
            )
        whole[:, index, : part.logprobs.shape[1]] = torch.stack(part)
    if devices and devices.count > 1:
        mine = [row for group in groups for row in group]
        for rows, values in devices.gather([(mine, whole[:, mine].cpu())], devices.count):
            whole[:, rows] = values.to(whole.device)
    return Analysis(*whole)


def _padded(values: Sequence[Sequence[float]], response_mask: Tensor) -> Tensor:
    """One float per response token laid out as [B, R]."""
    padded = torch.zeros(response_mask.shape, device=response_mask.device)
    padded[response_mask] = torch.tensor([number for row in values for number in row], device=padded.device)
    return padded


def plan_microbatches(lengths: Sequence[int], rows: Iterable[int], max_tokens: int) -> list[list[int]]:
    """Cut `rows` into groups of similar length, each at most `max_tokens` with what attention pads (or one row).

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
    """Share of the places in attention that is padding, for rows read in these groups."""
    cpu = torch.device("cpu")
    places = sum(Documents([lengths[row] for row in group], cpu).places for group in groups)
    return 1.0 - sum(lengths[row] for group in groups for row in group) / places
