"""Start a small Llama with the circuit that copies, instead of waiting for training to find it.

A desk must repeat names and numbers it has never seen. In a transformer two heads do that (Olsson et al. 2022,
"In-context Learning and Induction Heads"): one looks at the token before, the next looks for where the current token
stood earlier and repeats what followed. From random weights a model of this size needs millions of tokens to form
them; written in at the start they take none, and training only learns when to use them. Nothing is frozen, and the
architecture stays plain Llama.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

SHARPNESS: Final = 9.0
"""Attention logits between the wanted position and its neighbours, at initialisation."""
MATCH: Final = 14.0
"""Attention logit of a matching token."""
COPY_GAIN: Final = 3.0
"""Size of the copied token in the residual stream, in units of an embedding's."""
QUIET: Final = 0.1
"""Factor on the random output projections, at initialisation."""
SLOW_RADIANS: Final = 0.02
"""Rotary pairs that turn less than this per position carry content; faster ones carry position."""


class _Basis(NamedTuple):
    """Orthonormal directions of the residual stream, each [size, hidden]."""

    constant: Tensor
    """[1, hidden] present in every token: what position heads read."""
    earlier: Tensor
    """[m, hidden] where the token before is written; no embedding has a part in it."""
    words: Tensor
    """[hidden - 1 - m, hidden] where embeddings live."""


def begin_with_copying(model: LlamaForCausalLM, seed: int) -> None:
    """Write a previous-token head into layer 0 and a matching head into layer 1, in place.

    Needs two layers or more, tied embeddings, and rotary frequencies slow enough to carry content (rope_theta of
    1e5 or more). Raises ValueError otherwise.
    """
    config = model.config
    size = config.hidden_size // config.num_attention_heads
    frequencies = model.model.rotary_emb.inv_freq.double()
    slow = torch.nonzero(frequencies < SLOW_RADIANS).flatten()
    if config.num_hidden_layers < 2 or not config.tie_word_embeddings or len(slow) < size // 8:
        raise ValueError("copying needs two layers, tied embeddings and slow rotary frequencies (a larger rope_theta)")
    content = torch.cat([slow, slow + size // 2])
    basis = _basis(config.hidden_size, len(content), torch.Generator().manual_seed(seed))
    with torch.no_grad():
        _quieten(model)
        _set_embeddings(model, basis)
        _set_previous_token_head(model, basis, frequencies)
        _set_matching_head(model, basis, content)


def _basis(hidden: int, earlier: int, generator: torch.Generator) -> _Basis:
    square = torch.linalg.qr(torch.randn(hidden, hidden, generator=generator, dtype=torch.float64)).Q
    return _Basis(square[:1], square[1 : 1 + earlier], square[1 + earlier :])


def _quieten(model: LlamaForCausalLM) -> None:
    """Shrink what the random heads and MLPs add, so that the two written heads read embeddings and not noise."""
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight.mul_(QUIET)
        layer.mlp.down_proj.weight.mul_(QUIET)


def _set_embeddings(model: LlamaForCausalLM, basis: _Basis) -> None:
    """Each token: its own random direction among the words, and as much of the constant."""
    weight = model.model.embed_tokens.weight
    own = weight.double() @ basis.words.T @ basis.words
    scale = own.norm(dim=-1).mean()
    weight.copy_(own + scale * basis.constant)


def _set_previous_token_head(model: LlamaForCausalLM, basis: _Basis, frequencies: Tensor) -> None:
    """Layer 0, head 0: query and key read the constant alone, turned so that they agree one position apart."""
    attention = model.model.layers[0].self_attn
    size = attention.head_dim
    fast = torch.nonzero(frequencies > SLOW_RADIANS).flatten()
    key, query = torch.zeros(size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    key[fast] = 1.0
    query[fast] = torch.cos(frequencies[fast])
    # The rotation takes a pair (x, x') at position p to angle p * frequency: start one position behind.
    query[fast + size // 2] = -torch.sin(frequencies[fast])
    read = math.sqrt(model.config.hidden_size / 2)  # size of the constant after RMSNorm
    contrast = float((1 - torch.cos(frequencies[fast])).sum())
    gain = math.sqrt(SHARPNESS * math.sqrt(size) / contrast) / read
    _head(attention.q_proj.weight, 0, size).copy_(gain * query[:, None] * basis.constant)
    _head(attention.k_proj.weight, 0, size).copy_(gain * key[:, None] * basis.constant)
    copied = len(basis.earlier)
    value = torch.zeros(size, model.config.hidden_size, dtype=torch.float64)
    value[:copied] = basis.words[:copied]
    _head(attention.v_proj.weight, 0, size).copy_(value)
    embedding = float(model.model.embed_tokens.weight.double().norm(dim=-1).mean()) / math.sqrt(2)
    seen = math.sqrt(model.config.hidden_size / 2 * copied / len(basis.words))  # size of `value @ normed embedding`
    out = torch.zeros(model.config.hidden_size, size, dtype=torch.float64)
    out[:, :copied] = basis.earlier.T * (embedding / seen)
    attention.o_proj.weight[:, :size].copy_(out)


def _set_matching_head(model: LlamaForCausalLM, basis: _Basis, content: Tensor) -> None:
    """Layer 1, head 0: the query is this token, the key the token before; what is found is written back as itself."""
    attention = model.model.layers[1].self_attn
    size, hidden = attention.head_dim, model.config.hidden_size
    copied = len(basis.earlier)
    query, key = torch.zeros(size, hidden, dtype=torch.float64), torch.zeros(size, hidden, dtype=torch.float64)
    query[content], key[content] = basis.words[:copied], basis.earlier
    third = math.sqrt(hidden / 3)  # constant, own and earlier token share the normed stream
    this = third * math.sqrt(copied / len(basis.words))
    gain = math.sqrt(MATCH * math.sqrt(size) / (this * third))
    _head(attention.q_proj.weight, 0, size).copy_(gain * query)
    _head(attention.k_proj.weight, 0, size).copy_(gain * key)
    _head(attention.v_proj.weight, 0, size).copy_(basis.words[-size:])
    embedding = float(model.model.embed_tokens.weight.double().norm(dim=-1).mean()) / math.sqrt(2)
    seen = third * math.sqrt(size / len(basis.words))
    attention.o_proj.weight[:, :size].copy_(COPY_GAIN * 2 * embedding / seen * basis.words[-size:].T)


def _head(weight: Tensor, number: int, size: int) -> Tensor:
    """The rows of one head in a projection, as a view."""
    return weight[number * size : (number + 1) * size]
