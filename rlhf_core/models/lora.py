"""LoRA adapters in peft's files: read one, apply it beside shared base weights, or merge it for training.

A policy may be an adapter: its checkpoint holds the low-rank terms alone and names the checkpoint whose weights they
change. Variants that change more than single projections by a low-rank term are refused by name.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from rlhf_core.errors import ModelError
from rlhf_core.models.projection import LowRank

ADAPTER_CONFIG: Final = "adapter_config.json"
ADAPTER_WEIGHTS: Final = "adapter_model.safetensors"
_PREFIX: Final = "base_model.model."
_REFUSED: Final = (
    "use_dora",
    "modules_to_save",
    "layer_replication",
    "lora_bias",
    "alora_invocation_tokens",
    "target_parameters",
    "trainable_token_indices",
    "use_qalora",
    "velora_config",
    "use_bdlora",
    "arrow_config",
)
"""What peft's LoRA can be besides a low-rank term on single projections."""
_CHANGES_BASE: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways of starting a term, by how their names begin, in which peft also changes the weights beside it."""


def is_adapter(directory: Path) -> bool:
    return (directory / ADAPTER_CONFIG).is_file()


@dataclass(frozen=True, eq=False)
class Adapter:
    """Low-rank terms by the name of the module that they belong to, as `model.named_modules()` says it."""

    terms: Mapping[str, LowRank]

    def joined(self, modules: Sequence[tuple[str, int]]) -> LowRank | None:
        """One term for modules (name, out features) that share their input and whose outputs are joined."""
        present = [self.terms.get(name) for name, _ in modules]
        known = [term for term in present if term is not None]
        if not known:
            return None
        up = known[0].up.new_zeros(sum(term.down.shape[1] for term in known), sum(out for _, out in modules))
        row = column = 0
        for term, (_, out) in zip(present, modules, strict=True):
            if term is not None:
                rank = term.down.shape[1]
                up[row : row + rank, column : column + out] = term.up
                row += rank
            column += out
        return LowRank(torch.cat([term.down for term in known], dim=1).contiguous(), up)


def load_adapter(directory: Path, model: Any, dtype: torch.dtype | None = None) -> Adapter:
    """Read an adapter for `model`, on its device and in its type if no other is given. Raises ModelError when it does
    not fit."""
    config = _read_config(directory)
    try:
        tensors = load_file(directory / ADAPTER_WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{directory}/{ADAPTER_WEIGHTS} cannot be read: {error}") from None
    modules = dict(model.named_modules())
    to = {"device": model.device, "dtype": dtype or model.dtype}
    terms = {}
    for name in sorted({_module_name(directory, key) for key in tensors}):
        terms[name] = _term(directory, name, modules.get(name), tensors, config, to)
    if not terms:
        raise ModelError(f"{directory}/{ADAPTER_WEIGHTS} holds no LoRA weights")
    return Adapter(terms)


def _read_config(directory: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{directory}/{ADAPTER_CONFIG} cannot be read: {error}") from None
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{directory} is a {config.get('peft_type')} adapter; only LORA is served")
    if config.get("bias", "none") != "none":
        raise ModelError(f"{directory} trains biases (bias={config['bias']!r}), which is not served")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGES_BASE):
        raise ModelError(f"{directory} was started with {start}, which changes the base model's weights; not served")
    for name in _REFUSED:
        if config.get(name):
            raise ModelError(f"{directory} uses {name}, which is not served")
    return config


def _module_name(directory: Path, key: str) -> str:
    match = re.fullmatch(r"base_model\.model\.(.+)\.lora_[AB]\.weight", key)
    if match is None:
        raise ModelError(f"{directory}/{ADAPTER_WEIGHTS} holds {key}, which is not a low-rank term of a projection")
    return match[1]


def _term(
    directory: Path,
    name: str,
    module: Any,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    to: Mapping[str, Any],
) -> LowRank:
    pair = [tensors.get(f"{_PREFIX}{name}.lora_{part}.weight") for part in "AB"]
    down, up = pair
    if module is None or down is None or up is None:
        raise ModelError(f"{directory} changes {name}, which the base model does not have or whose half is missing")
    expected = _features(module)
    if expected is None or (down.shape[1], up.shape[0]) != expected or down.shape[0] != up.shape[1]:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise ModelError(f"{directory} changes {name} by weights of shape {shapes}; the projection is {expected}")
    if not bool(down.isfinite().all() and up.isfinite().all()):
        raise ModelError(f"{directory} has weights for {name} that are not finite")
    scaling = _scaling(name, down.shape[0], config)
    return LowRank((down.t()).to(**to).contiguous(), (up.t() * scaling).to(**to).contiguous())


def _features(module: Any) -> tuple[int, int] | None:
    """(in, out) of a projection; Conv1D, GPT-2's, stores its weight the other way round."""
    if isinstance(module, torch.nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    return None


def _scaling(name: str, rank: int, config: Mapping[str, Any]) -> float:
    """alpha / r, or alpha / sqrt(r) for rank-stabilised LoRA (Kalajdzievski 2023)."""
    alpha: float = config.get("lora_alpha", 8)
    for pattern, value in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            alpha = value
            break
    return alpha / rank**0.5 if config.get("use_rslora") else alpha / rank


def with_adapter(model: Any, adapter: Adapter) -> Any:
    """A model of its own that shares every tensor with `model` and adds the adapter's terms."""
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    adapted = copy.deepcopy(model, shared)
    for name, term in adapter.terms.items():
        adapted.get_submodule(name).register_forward_hook(_adding(term))
    return adapted


def _adding(term: LowRank) -> Any:
    def add(_module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + inputs[0] @ term.down @ term.up

    return add


def merge(model: Any, adapter: Adapter) -> None:
    """Add the terms to the model's own weights: the policy as full weights, to be trained or shipped."""
    with torch.no_grad():
        for name, term in adapter.terms.items():
            module = model.get_submodule(name)
            change = term.down @ term.up
            module.weight += change if isinstance(module, Conv1D) else change.t()
