"""LoRA terms that learn: peft's layers put into a transformers model, which stays of its own class.

The terms start with B = 0, so the model computes at first what it computed before, and with the adapter off it
computes that for ever: one trunk is both the policy and its reference. peft's two files come out, as `models/lora.py`
reads them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rlhf_core.errors import ModelError
from rlhf_core.models.lora import ADAPTER_WEIGHTS, Adapter
from rlhf_core.models.lora_linear import lean
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.projection import LowRank

NAME: Final = "default"
"""peft's name for an adapter that has none."""


def add_lora(model: PreTrainedModel, settings: LoraSettings, seed: int) -> LoraConfig:
    """Freeze the model and put a fresh term beside each target. Raises ModelError when a target is not there."""
    projections = _projections(model)
    targets = sorted(settings.targets or {name.rsplit(".", 1)[-1] for name in projections})
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in projections):
            raise ModelError(f"{type(model).__name__} has no projection named {target} for LoRA to change")
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=cast(int, settings.alpha),
        target_modules=targets,
        lora_dropout=0.0,
        fan_in_fan_out=any(isinstance(each, Conv1D) for each in projections.values()),
        task_type="CAUSAL_LM",
    )
    model.requires_grad_(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, model)
    for layer in lora_layers(model).values():
        lean(layer)
    return config


def _projections(model: PreTrainedModel) -> dict[str, torch.nn.Module]:
    """Every linear map of the model by its name, but the one to the vocabulary."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and module is not head
    }


def lora_layers(model: PreTrainedModel) -> dict[str, Any]:
    """The model's LoRA layers by the name of the projection that each changes."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@contextmanager
def adapter_off(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """The model as it was before `add_lora`, while the context lasts: bit for bit in float32."""
    layers = lora_layers(model).values()
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield model
    finally:
        for layer in layers:
            layer.enable_adapters(True)


@torch.no_grad()
def current_terms(model: PreTrainedModel, dtype: torch.dtype | None = None) -> Adapter:
    """The terms as they stand now, scaling included, for a forward that joins projections; in `dtype` if given."""
    terms = {}
    for name, layer in lora_layers(model).items():
        down, up = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
        wanted = dtype or down.dtype
        terms[name] = LowRank(down.t().to(wanted), (up.t() * layer.scaling[NAME]).to(wanted))
    return Adapter(terms)


def save_lora(model: PreTrainedModel, config: LoraConfig, directory: Path, *, base: str = "") -> None:
    """Write peft's two files into `directory`, which exists; `base` names the model that the terms change."""
    tensors = {}
    for name, layer in lora_layers(model).items():
        for part, module in (("A", layer.lora_A[NAME]), ("B", layer.lora_B[NAME])):
            tensors[f"base_model.model.{name}.lora_{part}.weight"] = module.weight.detach().cpu().contiguous()
    save_file(tensors, directory / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config.inference_mode = True
    config.base_model_name_or_path = base
    config.save_pretrained(str(directory))
    config.inference_mode = False
