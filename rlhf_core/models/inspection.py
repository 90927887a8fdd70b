"""What a model's attention is, and whether the engine's slots compute it: read from the configuration before any
weight is loaded, and from one token's forward after.

A model is refused by name rather than served with answers that are not its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from rlhf_core.errors import ModelError
from rlhf_core.models.forward import PlainForward

_LAYERS: Final = frozenset({"full_attention", "sliding_attention", "chunked_attention", "attention"})
_LONG_ROPES: Final = frozenset({"dynamic", "longrope"})
"""Rotary scalings that depend on the longest sequence of a forward: one request would change another's answer."""

_REFUSED: Final = {
    "is_encoder_decoder": "reads its prompt with an encoder",
    "add_cross_attention": "attends to an encoder",
    "use_bidirectional_attention": "looks at tokens that are still to come",
    "attn_logit_softcapping": "caps its attention logits",
    "reorder_and_upcast_attn": "computes its attention in another precision",
    "alibi": "adds position biases to its attention",
}
"""Fields of a configuration that, when set, change attention, with what they do."""


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """What one layer keeps of a token, and how far back it looks."""

    kv_heads: int
    key_size: int
    value_size: int
    window: int | None
    """Tokens that a query sees, its own included; None: all before it."""

    @property
    def elements(self) -> int:
        """Numbers that the cache holds for one token."""
        return self.kv_heads * (self.key_size + self.value_size)


def refuse_special_attention(directory: Path, config: Any) -> None:
    """`config` is the model's whole configuration. Raises ModelError for attention that the slots do not compute."""
    text = config.get_text_config()
    for source in (config, text):
        for name, effect in _REFUSED.items():
            if getattr(source, name, None):
                raise ModelError(f"{directory} ({config.model_type}) {effect} ({name}), which cannot be served")
    kinds = set(getattr(text, "layer_types", None) or ())
    if unknown := sorted(kinds - _LAYERS):
        raise ModelError(f"{directory} ({config.model_type}) has {unknown[0]} layers, which cannot be served")
    for rope_type in _rope_types(getattr(text, "rope_parameters", None) or {}):
        if rope_type in _LONG_ROPES:
            raise ModelError(f"{directory} uses {rope_type} rotary scaling, which cannot be served in batches")


def refuse_chunks(directory: Path, config: Any, context: int) -> None:
    """Raises ModelError for attention within chunks, unless `context` never outgrows one."""
    text = config.get_text_config()
    chunk = getattr(text, "attention_chunk_size", None)
    if "chunked_attention" in (getattr(text, "layer_types", None) or ()) and chunk is not None and chunk < context:
        raise ModelError(
            f"{directory} ({config.model_type}) has chunked_attention of {chunk} tokens: "
            f"set the context to at most {chunk}"
        )


def _rope_types(parameters: dict[str, Any]) -> list[str]:
    """Of all layers, or of each kind of layer where these differ."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return [str(each.get("rope_type", "default")) for each in (parameters, *nested)]


class _Record:
    """Stands in for the slots, and writes down what each layer asks of them."""

    def __init__(self) -> None:
        self.layers: dict[int, AttentionLayer] = {}
        self.repeated: set[int] = set()

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None
    ) -> Tensor:
        """query [1, H, N, D], key and value [1, H_kv, N, D] -> zeros [1, N, H, D]."""
        if layer in self.layers:
            self.repeated.add(layer)
        self.layers[layer] = AttentionLayer(key.shape[1], key.shape[3], value.shape[3], window)
        return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[3])


def inspect_attention(directory: Path, model: Any, context: int) -> tuple[AttentionLayer, ...]:
    """Run one token to see what each layer attends with.

    Raises ModelError when a layer does not attend, attends twice, needs what the slots do not compute, or has a
    window below `context` that it does not pass on to its attention.
    """
    record = _Record()
    token = torch.zeros(1, dtype=torch.long, device=model.device)
    try:
        with torch.no_grad():
            PlainForward(model)(token, token, None, record)
    except ModelError as error:
        raise ModelError(f"{directory}: {error}") from None
    except Exception as error:  # Any model's own code, called as the engine will call it.
        raise ModelError(f"{directory}: {type(model).__name__} does not run in the engine: {error!r:.300}") from error
    absent = sorted(set(range(model.config.get_text_config().num_hidden_layers)) - set(record.layers))
    if absent or record.repeated:
        layer, fault = (absent[0], "does not attend") if absent else (min(record.repeated), "attends more than once")
        raise ModelError(f"{directory}: layer {layer} of {type(model).__name__} {fault} through the engine")
    _require_windows(directory, model, record.layers, context)
    return tuple(record.layers[index] for index in sorted(record.layers))


def _require_windows(directory: Path, model: Any, layers: dict[int, AttentionLayer], context: int) -> None:
    """transformers masks by the configuration, the slots by what a layer passes on: the two must agree."""
    for index, window in enumerate(_windows(model.config.get_text_config())):
        passed = layers[index].window
        if min(window or context, context) != min(passed or context, context):
            raise ModelError(
                f"{directory}: layer {index} of {type(model).__name__} sees {window or 'all'} tokens by its "
                f"configuration and {passed or 'all'} by its code: set the context to at most {window or passed}"
            )


def _windows(config: Any) -> list[int | None]:
    window = getattr(config, "sliding_window", None) or None
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        in_use = getattr(config, "use_sliding_window", True)
        return [window if in_use else None] * int(config.num_hidden_layers)
    return [window if kind == "sliding_attention" else None for kind in kinds]
