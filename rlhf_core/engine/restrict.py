"""What a request takes out of, or off, the distribution before a token is drawn: penalties, early ends, top_k,
top_p, min_p. Rows that ask for nothing of it cost nothing.

Penalties and min_tokens change logits; top_k, then top_p, then min_p (the order of transformers) leave tokens
out of what remains.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from rlhf_core.engine.sequence import Sequence, is_greedy

CANDIDATES = 256
"""Tokens looked at first for top_p: a nucleus is nearly always smaller, and sorting the vocabulary costs more than
the model."""


def adjusted_logits(scaled: Tensor, sequences: Rows[Sequence]) -> Tensor:
    """logits / temperature [B, V] after penalties and min_tokens; the same tensor where no row asks for either."""
    rows = [row for row, sequence in enumerate(sequences) if _is_adjusted(sequence)]
    if not rows:
        return scaled
    adjusted = scaled.clone()
    for row in rows:
        _penalise(adjusted[row], sequences[row])
        _forbid_early_end(adjusted[row], sequences[row])
    return adjusted


def needs_tensors(sequence: Sequence) -> bool:
    """Whether a draw needs more than the distribution itself: something left out of it, or its most probable tokens."""
    return sequence.request.top_logprobs > 0 or _is_restricted(sequence)


def _is_adjusted(sequence: Sequence) -> bool:
    sampling = sequence.request.sampling
    penalised = bool(sequence.token_ids) and (sampling.presence_penalty != 0 or sampling.frequency_penalty != 0)
    return penalised or _ends_early(sequence)


def _ends_early(sequence: Sequence) -> bool:
    return len(sequence.token_ids) < sequence.request.min_tokens


def _penalise(row: Tensor, sequence: Sequence) -> None:
    """OpenAI's penalties, over the response alone, in place: logit - frequency * count - presence."""
    sampling = sequence.request.sampling
    if not sequence.token_ids or (sampling.presence_penalty == 0 and sampling.frequency_penalty == 0):
        return
    counts = Counter(sequence.token_ids)
    penalties = [sampling.presence_penalty + sampling.frequency_penalty * count for count in counts.values()]
    # The row is already divided by the temperature, and so must be what is taken off its logits.
    temperature = 1.0 if is_greedy(sequence) else sampling.temperature
    row[list(counts)] -= row.new_tensor(penalties) / temperature


def _forbid_early_end(row: Tensor, sequence: Sequence) -> None:
    if _ends_early(sequence):
        policy = sequence.policy
        assert policy is not None, "a scheduled sequence is pinned to a policy"
        row[list(policy.end_token_ids)] = float("-inf")


def restrict(probs: Tensor, adjusted: Tensor, sequences: Rows[Sequence]) -> tuple[list[int], Tensor]:
    """The rows that do not draw from `probs` [B, V], and their weights [rows, V], zero for what is left out."""
    rows = [row for row, sequence in enumerate(sequences) if not is_greedy(sequence) and _is_restricted(sequence)]
    if not rows:
        return rows, probs[:0]
    weights = torch.stack([_weights(probs[row], adjusted[row], sequences[row]) for row in rows])
    return rows, weights


def _is_restricted(sequence: Sequence) -> bool:
    sampling = sequence.request.sampling
    return sampling.top_k > 0 or sampling.top_p < 1.0 or sampling.min_p > 0.0 or _is_adjusted(sequence)


def _weights(probs: Tensor, adjusted: Tensor, sequence: Sequence) -> Tensor:
    sampling = sequence.request.sampling
    weights = adjusted.softmax(dim=-1) if _is_adjusted(sequence) else probs
    if sampling.top_k > 0 or sampling.top_p < 1.0:
        values, indices = _nucleus(weights, sampling.top_k, sampling.top_p)
        weights = torch.zeros_like(weights).scatter_(0, indices, values)
    if sampling.min_p > 0.0:
        weights = weights.masked_fill(weights < sampling.min_p * weights.amax(), 0.0)
    return weights


def _nucleus(weights: Tensor, top_k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """Weights and ids of the tokens that top_k, then top_p, leave.

    The nucleus is the smallest set that reaches top_p: a token is in while those before it have not reached it.
    """
    vocabulary = weights.shape[0]
    most = min(top_k, vocabulary) if top_k > 0 else vocabulary
    size = most if top_p >= 1.0 else min(most, CANDIDATES)
    while True:
        values, indices = weights.topk(size)
        if top_p >= 1.0:
            return values, indices
        # Without top_k the whole is the sum over the vocabulary, which need not be sorted for that.
        whole = weights.sum() if most == vocabulary else values.sum() if size == most else weights.topk(most)[0].sum()
        before = values.cumsum(dim=0) - values
        inside = before < top_p * whole
        inside[0] = True
        if size == most or not bool(inside[-1]):
            return values[inside], indices[inside]
        size = min(most, size * 8)
