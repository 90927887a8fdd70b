"""What a model says about responses that already exist: logprobs, entropy and values, in the trainer's own
forward pass.

Prompt and response stand left to right, rows end to end (models/documents.py). Only positions that predict a response
token reach the language-model head, which for a small model with a large vocabulary is most of the work.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.learning.losses import token_entropy, token_logprobs, token_logprobs_and_entropy
from rlhf_core.models.documents import Documents, round_rows, run_documents
from rlhf_core.models.value import ValueHead
from rlhf_core.records import TokenIds

LOGITS_AT_ONCE = 1 << 25
"""Logits held at a time (128 MB in float32); beyond that they are made in chunks, and made again for the
gradient."""


class TokenBatch(NamedTuple):
    """B prompts with their responses, padded on the right: T tokens for both, R for the response alone."""

    input_ids: Tensor
    """[B, T] long."""
    prompt_lengths: Tensor
    """[B] long."""
    response_mask: Tensor
    """[B, R] bool, True counts: from the first response token to the last."""

    @classmethod
    def of(cls, pairs: Sequence[tuple[TokenIds, TokenIds]], device: torch.device | str = "cpu") -> TokenBatch:
        """Lay out pairs of prompt and response. Padding is token 0: it is told apart by length, never by its
        id."""
        response_lengths = torch.tensor([len(response) for _, response in pairs])
        response_mask = torch.arange(int(response_lengths.max())) < response_lengths[:, None]
        prompt_lengths = torch.tensor([len(prompt) for prompt, _ in pairs])
        lengths = prompt_lengths + response_lengths
        # One tensor of all tokens, and not one a row: rows are many and short.
        input_ids = torch.zeros(len(pairs), int(lengths.max()), dtype=torch.long)
        everything = itertools.chain.from_iterable(itertools.chain.from_iterable(pairs))
        input_ids[torch.arange(input_ids.shape[1]) < lengths[:, None]] = torch.tensor(list(everything))
        return cls(input_ids.to(device), prompt_lengths.to(device), response_mask.to(device))

    def rows(self, index: Tensor) -> TokenBatch:
        """The rows `index` [b], with no more padding than they need."""
        prompt_lengths, response_mask = self.prompt_lengths[index], self.response_mask[index]
        response_lengths = response_mask.sum(-1)
        longest, longest_response = int((prompt_lengths + response_lengths).max()), int(response_lengths.max())
        return TokenBatch(self.input_ids[index, :longest], prompt_lengths, response_mask[:, :longest_response])


class Analysis(NamedTuple):
    """What a model says about given responses; all [B, R], zero outside the response mask."""

    logprobs: Tensor
    entropy: Tensor
    """Zero where it was not asked for."""
    values: Tensor
    """Zero without a value head."""


class ResponseStates(NamedTuple):
    """The N counted tokens of a batch, row by row."""

    hidden: Tensor
    """[N, D], of the position before each token: what predicts it."""
    targets: Tensor
    """[N] long, the tokens themselves."""
    places: tuple[Tensor, Tensor]
    """Row and column [N] of each in a [B, R] tensor."""


def response_states(model: PreTrainedModel, batch: TokenBatch) -> ResponseStates:
    """The trunk's last hidden states where a response token is predicted, in one forward pass."""
    row, offset = batch.response_mask.nonzero(as_tuple=True)
    column = batch.prompt_lengths[row] - 1 + offset
    # The last token of a row predicts nothing that counts.
    lengths = batch.prompt_lengths + batch.response_mask.sum(-1) - 1
    inputs = batch.input_ids[torch.arange(batch.input_ids.shape[1], device=lengths.device) < lengths[:, None]]
    wanted = ((lengths.cumsum(0) - lengths)[row] + column).to(inputs.device)
    hidden = run_documents(model.base_model, inputs, Documents(lengths.tolist(), inputs.device), wanted)
    return ResponseStates(hidden, batch.input_ids[row, column + 1], (row, offset))


def analyse(
    model: PreTrainedModel,
    batch: TokenBatch,
    *,
    temperature: float,
    value_head: ValueHead | None = None,
    with_entropy: bool = False,
    entropy_learns: bool = False,
) -> Analysis:
    """Logprobs, and on request entropy and values, of the responses of `batch` under `model`, in one forward
    pass.

    Only the positions that predict a response token reach the language-model head. The value at a token is
    that of the state before it was drawn, so it is read from the same position as its logprob. The entropy carries a
    gradient only if `entropy_learns`.
    """
    hidden, targets, places = response_states(model, batch)

    def placed(flat: Tensor) -> Tensor:
        return flat.new_zeros(batch.response_mask.shape).index_put(places, flat)

    logprobs, entropy = head_logprobs(
        model.get_output_embeddings(), hidden, targets, temperature, with_entropy, entropy_learns=entropy_learns
    )
    values = torch.zeros_like(logprobs) if value_head is None else value_head(hidden)
    return Analysis(placed(logprobs), placed(entropy), placed(values))


def head_logprobs(
    head: nn.Module,
    hidden: Tensor,
    targets: Tensor,
    temperature: float,
    with_entropy: bool,
    *,
    entropy_learns: bool = False,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> tuple[Tensor, Tensor]:
    """Logprobs [N] of `targets` [N] and entropy [N] (zeros unless asked for) from `hidden` [N, D] through
    `head` to V logits.

    About `logits_at_once` logits exist at a time, whatever N is. The entropy carries a gradient only if
    `entropy_learns`.
    """

    def read(states: Tensor, token_ids: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)
        if with_entropy and not entropy_learns:
            return token_logprobs_and_entropy(logits, token_ids, temperature)
        logprobs = token_logprobs(logits, token_ids, temperature)
        return logprobs, token_entropy(logits, temperature) if with_entropy else torch.zeros_like(logprobs)

    rows = hidden.shape[0]
    if more := round_rows(rows, hidden.device):
        hidden, targets = pad(hidden, (0, 0, 0, more)), pad(targets, (0, more))
    chunk = max(1, logits_at_once // next(head.parameters()).shape[0])
    if hidden.shape[0] <= chunk:
        parts = [read(hidden, targets)]
    else:
        pieces = zip(hidden.split(chunk), targets.split(chunk), strict=True)
        parts = [checkpoint(read, states, token_ids, use_reentrant=False) for states, token_ids in pieces]
    return torch.cat([part[0] for part in parts])[:rows], torch.cat([part[1] for part in parts])[:rows]


def require_plain_head(model: PreTrainedModel) -> None:
    """Raise ModelError for a model that changes its logits after the language-model head, which `analyse`
    would miss."""
    for name, harmless in (("final_logit_softcapping", None), ("logit_scale", 1.0), ("logits_scaling", 1.0)):
        value = getattr(model.config, name, harmless)
        if value not in (None, harmless):
            raise ModelError(f"{type(model).__name__} sets {name} to {value}, which PPO does not support")
