"""Draw one token per sequence from a step's logits.

Inverse transform: one uniform number per row and a search in the cumulative distribution. One number per
token, drawn in plain Python, makes a seeded sequence independent of the batch around it and of the device,
and is far cheaper than noise over the whole vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from rlhf_core.engine.sequence import Sequence
from rlhf_core.errors import ModelError

COLDEST = 1e-4
"""Temperatures below this are greedy: dividing by them would only lose precision."""


def sample(logits: Tensor, sequences: Rows[Sequence], shared: random.Random) -> tuple[list[int], list[float]]:
    """logits [B, V] -> token id and logprob per row; `shared` is for the sequences without a seed.

    The logprob is that of the policy, log-softmax(logits / temperature) at the token, whatever top_p, top_k
    or min_tokens left out; greedy rows count as temperature 1. Raises ModelError when the logits are not
    finite.
    """
    log_probs = _log_probs(logits, sequences)
    allowed = _without_early_ends(log_probs, sequences)
    greedy = [_is_greedy(sequence) for sequence in sequences]
    if all(greedy):
        tokens = allowed.argmax(dim=-1)
    else:
        tokens = _draw(allowed, sequences, shared)
        if any(greedy):
            tokens = torch.where(torch.tensor(greedy, device=tokens.device), allowed.argmax(dim=-1), tokens)
    logprobs = log_probs.gather(1, tokens[:, None])[:, 0]
    return tokens.tolist(), logprobs.tolist()


def _is_greedy(sequence: Sequence) -> bool:
    return sequence.request.sampling.temperature < COLDEST


def _log_probs(logits: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """log-softmax(logits / temperature) [B, V] in float32."""
    scaled = logits.float()
    temperatures = [1.0 if _is_greedy(s) else s.request.sampling.temperature for s in sequences]
    if any(temperature != 1.0 for temperature in temperatures):
        scaled = scaled / scaled.new_tensor(temperatures)[:, None]
    totals = scaled.logsumexp(dim=-1, keepdim=True)
    # One NaN or +inf in a row makes its total not finite; a model may mask single tokens with -inf.
    if not bool(totals.isfinite().all()):
        raise ModelError("the policy's logits are not finite")
    return scaled - totals


def _without_early_ends(log_probs: Tensor, sequences: Rows[Sequence]) -> Tensor:
    early = [i for i, s in enumerate(sequences) if len(s.token_ids) < s.request.min_tokens]
    if not early:
        return log_probs
    allowed = log_probs.clone()
    for row in early:
        policy = sequences[row].policy
        assert policy is not None, "a scheduled sequence is pinned to a policy"
        allowed[row, list(policy.end_token_ids)] = float("-inf")
    return allowed


def _draw(allowed: Tensor, sequences: Rows[Sequence], shared: random.Random) -> Tensor:
    """[B, V] -> [B] tokens. Each sequence that is not greedy takes one number from its own or the shared source."""
    numbers = [0.0 if _is_greedy(s) else (s.uniforms or shared).random() for s in sequences]
    probs = _restricted(allowed.softmax(dim=-1), sequences)
    # In float64, because a float32 running sum over a large vocabulary loses the rare tokens.
    cumulative = probs.cumsum(dim=-1, dtype=torch.float64)
    uniforms = torch.tensor(numbers, dtype=torch.float64, device=probs.device)[:, None]
    # right=True finds the first token whose cumulative mass exceeds the number: never one of probability 0.
    tokens = torch.searchsorted(cumulative, uniforms * cumulative[:, -1:], right=True)
    return tokens[:, 0].clamp_max(probs.shape[-1] - 1)


def _restricted(probs: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """Zero what top_k, then top_p, leave out; rows with neither are not touched."""
    wanted = [s.request.sampling for s in sequences]
    rows = [i for i, sampling in enumerate(wanted) if sampling.top_k > 0 or sampling.top_p < 1.0]
    if not rows:
        return probs
    ordered, order = probs[rows].sort(dim=-1, descending=True)
    ranks = torch.arange(probs.shape[-1], device=probs.device)
    top_k = torch.tensor([wanted[i].top_k or probs.shape[-1] for i in rows], device=probs.device)[:, None]
    ordered = ordered * (ranks < top_k)
    before = ordered.cumsum(dim=-1) - ordered
    top_p = probs.new_tensor([wanted[i].top_p for i in rows])[:, None]
    # The nucleus is the smallest set that reaches top_p: a token is in while those before it have not reached
    # it.
    inside = (before < top_p * ordered.sum(dim=-1, keepdim=True)) | (ranks == 0) | (top_p >= 1.0)
    restricted = probs.clone()
    restricted[rows] = torch.zeros_like(ordered).scatter_(1, order, ordered * inside)
    return restricted
