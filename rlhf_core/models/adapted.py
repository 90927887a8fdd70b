"""Policies that are adapters: found beside their base, loaded to share its weights or merged into a copy of them.

A sealed adapter checkpoint holds peft's two files, the base's configuration, tokenizer and template, and in its
manifest the id of the base checkpoint, which stands in the same root.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlhf_core.checkpoints import checkpoint_path, load_manifest
from rlhf_core.errors import ModelError
from rlhf_core.models.forward import adapt_forward
from rlhf_core.models.load import MODEL_FILES, LoadedPolicy, load_policy
from rlhf_core.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, is_adapter, load_adapter, merge, with_adapter


def base_of(directory: Path) -> Path:
    """The checkpoint that a sealed adapter changes. Raises ModelError when it is not there."""
    base = load_manifest(directory).base
    if base is None:
        raise ModelError(f"{directory.name} is an adapter, and its manifest names no base checkpoint")
    path = checkpoint_path(directory.parent, base)
    if not path.is_dir():
        raise ModelError(f"{directory.name} changes the weights of {base}, which is not in {directory.parent}")
    return path


def load_adapted(
    directory: Path, base: LoadedPolicy, *, policy_version: int = 0, checkpoint_id: str = "", weights_sha256: str = ""
) -> LoadedPolicy:
    """An adapter beside the weights of a loaded base; shares all of them. Raises ModelError when it does not fit."""
    adapter = load_adapter(directory, base.model, base.dtype)
    model = with_adapter(base.model, adapter)
    return replace(
        base,
        model=model,
        policy_version=policy_version,
        checkpoint_id=checkpoint_id,
        weights_sha256=weights_sha256,
        forward=adapt_forward(base.forward, model, adapter) if base.forward else None,
        base=base,
    )


def load_full(directory: Path, **options: Any) -> LoadedPolicy:
    """Any policy checkpoint as full weights of its own, to be trained or judged: an adapter is merged into its base.

    `options` are those of `load_policy`.
    """
    if not is_adapter(directory):
        return load_policy(directory, **options)
    policy = load_policy(base_of(directory), **options)
    merge(policy.model, load_adapter(directory, policy.model))
    return policy


def copy_adapter(source: Path, base: Path, destination: Path) -> None:
    """Fill `destination` with peft's files and all that the base has beside its weights."""
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (source / name).is_file():
            raise ModelError(f"{source} has no {name}")
        shutil.copyfile(source / name, destination / name)
    for pattern in MODEL_FILES:
        if "safetensors" not in pattern:
            for path in base.glob(pattern):
                shutil.copyfile(path, destination / path.name)


def named_base(directory: Path, root: Path) -> str | None:
    """The checkpoint under `root` that peft's configuration names as its base model, if it is one."""
    name = json.loads((directory / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    candidate = Path(str(name)).name
    return candidate if name and (root / candidate / "config.json").is_file() else None
