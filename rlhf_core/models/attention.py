"""One attention function for serving and for training, registered with transformers as `attune_slots`.

With the keyword argument `slots`, passed through the model's forward, every token lies in one row of the batch and
attention is ragged: over the engine's cache, or within documents that lie end to end (models/documents.py). Without it
this is ordinary masked attention, so a served policy can be `generate()`d as it stands. Knows nothing of caches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlhf_core.errors import ModelError

ATTENTION: Final = "attune_slots"

_UNSUPPORTED: Final = ("softcap", "s_aux", "sinks", "position_bias", "block_indices", "indices")
"""What some models pass to their attention and the slots do not compute: logit caps, sinks, learned biases, choices
of the positions to read.
"""


class SlotAttention(Protocol):
    """What is passed as `slots`: attention of the row's tokens over whatever they see."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None
    ) -> Tensor:
        """query [1, H, N, D], key and value [1, H_kv, N, D] -> [1, N, H, D].

        With a window, the query at position i sees positions i-window+1..i.
        """
        ...


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotary tables [positions, D] (Su et al. 2104.09864), `sin` with its first half negated."""

    cos: NDArray[np.float32]
    sin: NDArray[np.float32]


class JoinedAttention(SlotAttention, Protocol):
    """Slots on a CPU, which also take queries, keys and values as they leave their common product."""

    def attend_joined(
        self,
        layer: int,
        qkv: NDArray[np.float32],
        heads: int,
        scaling: np.float32,
        *,
        rotation: Rotation | None,
        window: int | None,
        kept: torch.dtype,
        crew: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """qkv [N, H + 2 H_kv, D], `heads` queries first, is rotated in place -> [N, H, D]. `kept`: what keys and values
        are kept in, float32 or bfloat16."""
        ...


def refuse_dropout(module: torch.nn.Module, dropout: float) -> None:
    """Raise ModelError for attention that drops out anything."""
    if dropout:
        raise ModelError(f"{type(module).__name__} drops out {dropout:g} of its attention: it is in training mode")


def seen_positions(positions: Tensor, start: int, end: int, window: int | None) -> Tensor:
    """positions [N] -> bool [N, end - start], True where the token at a position sees start + column."""
    columns = torch.arange(start, end, device=positions.device)
    rows = positions[:, None]
    return columns <= rows if window is None else (columns <= rows) & (columns > rows - window)


def hidden_positions(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to the scores: 0 where `seen`, -inf where not."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, float("-inf"))


def register_attention() -> None:
    """Make `attn_implementation="attune_slots"` known to transformers. Safe to call again."""
    AttentionInterface.register(ATTENTION, slot_attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)


def slot_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    slots: SlotAttention | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention signature. Raises ModelError for attention that the slots do not compute."""
    if slots is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return output, None
    for name in _UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ModelError(f"{type(module).__name__} uses {name} in its attention, which cannot be served")
    refuse_dropout(module, dropout)
    layer: Any = module.layer_idx
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    return slots.attend(layer, query, key, value, scale, sliding_window), None
