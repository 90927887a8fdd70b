"""The model that a run starts from, and the directory that it leaves: the plain `transformers` layout, or peft's."""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Protocol

from transformers import PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.learning.devices import Devices
from rlhf_core.models.load import MODEL_FILES, LoadedPolicy, load_policy, locate_model
from rlhf_core.models.lora import ADAPTER_CONFIG, is_adapter, load_adapter, merge
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.runs.options import read_lora
from rlhf_core.runs.run_files import write_aside

MERGED: Final = "base"
"""In a run that puts an adapter on a model that was itself an adapter: the weights that the new one changes."""


@dataclass(frozen=True)
class Start:
    """What a run trains, and where it came from. `models/trainable.py` makes it learn."""

    policy: LoadedPolicy
    """Full weights in float32; its `checkpoint_id` is what an adapter will name as its base."""
    source: Path
    """Directory with the tokenizer, the template and the configuration."""
    lora: LoraSettings | None
    """The adapter that is wanted beside frozen weights; None trains all weights."""


class Saves(Protocol):
    """A trained policy, such as `models.trainable.Trainable`."""

    def save(self, directory: Path) -> None:
        """Write weights and configuration, or peft's two files."""


def load_start(options: argparse.Namespace, devices: Devices) -> Start:
    """The policy of `--model` in float32 on the devices' own device. Raises ModelError if it cannot be trained."""
    source = locate_model(options.model)
    policy = load_source(source)
    lora = read_lora(options)
    base = str(source.resolve()) if Path(options.model).expanduser().is_dir() else options.model
    if is_adapter(source):
        source = base_directory(source)
        if lora is not None:
            base = _write_merged(policy.model, source, options.out / MERGED, devices)
    policy.model.to(devices.device)
    return Start(replace(policy, checkpoint_id=base), source, lora)


def load_source(source: Path, **options: Any) -> LoadedPolicy:
    """A policy from a directory as full weights; peft's adapter is merged into its base, which it names.

    `options` are those of `load_policy`.
    """
    if not is_adapter(source):
        return load_policy(source, **options)
    policy = load_policy(base_directory(source), **options)
    merge(policy.model, load_adapter(source, policy.model))
    return policy


def base_directory(adapter: Path) -> Path:
    """The directory of the model that an adapter changes. Raises ModelError when it is not there."""
    try:
        name = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ModelError(f"{adapter}/{ADAPTER_CONFIG} cannot be read: {error}") from None
    if not name:
        raise ModelError(f"{adapter} is an adapter, and its {ADAPTER_CONFIG} names no base model")
    return locate_model(str(name))


def save_policy(start: Start, trained: Saves, directory: Path) -> None:
    """Write the trained policy into `directory`, which exists: an ordinary `transformers` directory, or peft's files.

    Tokenizer, template and generation settings are the source's own files: training never changes them.
    """
    copy_beside(start.source, directory)
    trained.save(directory)


def _write_merged(model: PreTrainedModel, source: Path, directory: Path, devices: Devices) -> str:
    if devices.is_main and not directory.is_dir():

        def write(aside: Path) -> None:
            copy_beside(source, aside)
            model.save_pretrained(aside)

        write_aside(directory, write)
    devices.wait()
    return str(directory.resolve())


def copy_beside(source: Path, directory: Path) -> None:
    """Copy all that a model has beside its weights: configuration, tokenizer, template."""
    for pattern in MODEL_FILES:
        if "safetensors" not in pattern:
            for path in source.glob(pattern):
                shutil.copyfile(path, directory / path.name)
