"""Draw one token per sequence from a step's logits.

Inverse transform: one uniform number per row and a search in the cumulative distribution. One number per
token, drawn in plain Python, makes a seeded sequence independent of the batch around it and of the device,
and is far cheaper than noise over the whole vocabulary. The search has two levels, blocks of tokens and then
one block, so the vocabulary is passed over twice (softmax, block sums) and never sorted or summed up as a whole.
On a CPU one kernel does it for the rows that draw from the whole distribution.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlhf_core.engine.restrict import adjusted_logits, needs_tensors, restrict
from rlhf_core.engine.sequence import Sequence, TopLogprobs, is_greedy
from rlhf_core.errors import ModelError

NOT_FINITE = "the policy's logits are not finite"
BLOCK = 256
BELOW_ONE = 1.0 - 2.0**-53


@dataclass(frozen=True, slots=True)
class Draws:
    """One step's draws, by row."""

    token_ids: list[int]
    logprobs: list[float]
    """Nats: log-softmax(logits / temperature) at the token, of the policy itself: whatever top_p, top_k, min_p,
    min_tokens or penalties did to the draw does not enter. Greedy rows count as temperature 1."""
    top: list[TopLogprobs]
    """The most probable tokens with their logprobs, as many as each request asked for."""


def sample(logits: Tensor, sequences: Rows[Sequence], shared: random.Random, *, by_kernel: bool) -> Draws:
    """logits [B, V] -> one draw per row; `shared` is for the sequences without a seed. May overwrite `logits`.

    `by_kernel`: rows that draw from their whole distribution do so by a kernel; of a CPU and float32 alone.
    Raises ModelError when the logits are not finite.
    """
    # Each sequence that is not greedy takes one number from its own or the shared source.
    numbers = [0.0 if is_greedy(s) else (s.uniforms or shared).random() for s in sequences]
    others = [row for row, sequence in enumerate(sequences) if not by_kernel or needs_tensors(sequence)]
    if len(others) == len(sequences):
        return _sample_by_tensors(logits, sequences, numbers)
    draws = _sample_by_kernel(logits, sequences, numbers, others)
    if others:
        apart = _sample_by_tensors(logits[others], [sequences[row] for row in others], [numbers[row] for row in others])
        for row, token_id, logprob, top in zip(others, apart.token_ids, apart.logprobs, apart.top, strict=True):
            draws.token_ids[row], draws.logprobs[row], draws.top[row] = token_id, logprob, top
    return draws


def _sample_by_kernel(logits: Tensor, sequences: Rows[Sequence], numbers: list[float], left_out: list[int]) -> Draws:
    """Draws from the whole distribution, of all rows but those to be left out."""
    # Here, because a process that does without kernels does without their compiler too.
    from rlhf_core.models import kernels
    from rlhf_core.models.kernels.crew import muster

    temperatures = np.array([0.0 if is_greedy(s) else s.request.sampling.temperature for s in sequences], np.float32)
    temperatures[left_out] = kernels.LEFT_OUT
    tokens = np.empty(len(sequences), dtype=np.int64)
    logprobs = np.empty(len(sequences), dtype=np.float32)
    kernels.draw(
        logits.contiguous().numpy(),
        temperatures,
        np.array(numbers),
        tokens,
        logprobs,
        muster(),
    )
    token_ids = tokens.tolist()
    if min(token_ids) < 0:
        raise ModelError(NOT_FINITE)
    return Draws(token_ids, logprobs.tolist(), [()] * len(sequences))


def _sample_by_tensors(logits: Tensor, sequences: Rows[Sequence], numbers: list[float]) -> Draws:
    """Any draw, on any device."""
    scaled = _scaled(logits, sequences)
    probs = scaled.softmax(dim=-1)
    sums = _block_sums(probs)
    # One NaN or +inf in a row makes its sum not finite; a model may mask single tokens with -inf.
    if not bool(sums.sum().isfinite()):
        raise ModelError(NOT_FINITE)
    adjusted = adjusted_logits(scaled, sequences)
    greedy = [is_greedy(sequence) for sequence in sequences]
    if all(greedy):
        tokens = adjusted.argmax(dim=-1)
    else:
        tokens = _draw(probs, sums, adjusted, sequences, numbers)
        if any(greedy):
            tokens = torch.where(torch.tensor(greedy, device=tokens.device), adjusted.argmax(dim=-1), tokens)
    return Draws(tokens.tolist(), _logprobs(scaled, probs, tokens), _top(scaled, sequences))


def _scaled(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """logits / temperature [B, V] in float32."""
    scaled = logits.float()
    temperatures = [1.0 if is_greedy(s) else s.request.sampling.temperature for s in sequences]
    if all(temperature == 1.0 for temperature in temperatures):
        return scaled
    return scaled.div_(scaled.new_tensor(temperatures)[:, None])


def _block_sums(probs: Tensor) -> Tensor:
    """[B, V] -> [B, ceil(V / BLOCK)]: mass of each block of neighbouring tokens."""
    rows, vocabulary = probs.shape
    whole = vocabulary // BLOCK * BLOCK
    sums = probs[:, :whole].unflatten(1, (-1, BLOCK)).sum(dim=-1) if whole else probs.new_zeros(rows, 0)
    if whole == vocabulary:
        return sums
    return torch.cat([sums, probs[:, whole:].sum(dim=-1, keepdim=True)], dim=1)


def _draw(probs: Tensor, sums: Tensor, adjusted: Tensor, sequences: Rows[Sequence], numbers: list[float]) -> Tensor:
    """-> [B] tokens."""
    rows, weights = restrict(probs, adjusted, sequences)
    if rows:
        probs = probs.clone()
        probs[rows] = weights
        sums = sums.clone()
        sums[rows] = _block_sums(weights)
    # In float64, because a float32 running sum over many blocks loses the rare tokens.
    mass = sums.double().cumsum(dim=-1)
    target = torch.tensor(numbers, dtype=torch.float64, device=probs.device)[:, None] * mass[:, -1:]
    # right=True finds the first block, and then token, whose cumulative mass exceeds the number: never one of mass 0.
    block = torch.searchsorted(mass, target, right=True).clamp_max(mass.shape[1] - 1)
    inside = sums.gather(1, block).double()
    share = ((target - (mass.gather(1, block) - inside)) / inside).clamp_(0.0, BELOW_ONE)
    return _search_block(probs, block, share)


def _search_block(probs: Tensor, block: Tensor, share: Tensor) -> Tensor:
    """The token of each row's block [B, 1] where the given share [B, 1] of the block's mass is passed -> [B]."""
    last = probs.shape[1] - 1
    tokens = block * BLOCK + torch.arange(BLOCK, device=probs.device)
    weights = probs.gather(1, tokens.clamp_max(last)).double().masked_fill_(tokens > last, 0.0)
    mass = weights.cumsum(dim=-1)
    found = torch.searchsorted(mass, share * mass[:, -1:], right=True).clamp_max(BLOCK - 1)
    return (block * BLOCK + found)[:, 0].clamp_max(last)


def _logprobs(scaled: Tensor, probs: Tensor, tokens: Tensor) -> list[float]:
    logprobs = probs.gather(1, tokens[:, None])[:, 0].log()
    # A token that only a penalty made possible may be too rare for its probability to be a float32.
    for row in (~logprobs.isfinite()).nonzero()[:, 0].tolist():
        logprobs[row] = scaled[row].log_softmax(dim=-1)[tokens[row]]
    values: list[float] = logprobs.tolist()
    return values


def _top(scaled: Tensor, sequences: Rows[Sequence]) -> list[TopLogprobs]:
    wanted = [sequence.request.top_logprobs for sequence in sequences]
    top: list[TopLogprobs] = [()] * len(sequences)
    for row, count in enumerate(wanted):
        if count:
            values, indices = scaled[row].log_softmax(dim=-1).topk(min(count, scaled.shape[1]))
            top[row] = tuple(zip(indices.tolist(), values.tolist(), strict=True))
    return top
