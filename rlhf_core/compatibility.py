"""Whether one policy checkpoint can take over the traffic of another: same template, shape and vocabulary.

Reads the small files alone; no torch. The server asks before it loads, the command line before it publishes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_core.checkpoints import load_manifest
from rlhf_core.errors import CheckpointError

SHAPE = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "n_embd",
    "intermediate_size",
    "num_hidden_layers",
    "n_layer",
    "num_attention_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
)
"""The entries of config.json that training never changes; others differ between releases of the library."""


def require_same_shape(new: Path, old: Path) -> None:
    """Raises CheckpointError naming the first thing in which two sealed checkpoint directories differ."""
    ours, theirs = load_manifest(new).template_sha256, load_manifest(old).template_sha256
    if ours != theirs:
        raise CheckpointError(f"{new.name} has another chat template than {old.name}: {ours[:12]}, not {theirs[:12]}")
    new_config, old_config = _config(new), _config(old)
    for name in SHAPE:
        if new_config.get(name) != old_config.get(name):
            raise CheckpointError(
                f"{new.name} has {name} {new_config.get(name)}, {old.name} has {old_config.get(name)}"
            )
    if _vocabulary(new) != _vocabulary(old):
        raise CheckpointError(f"{new.name} has another vocabulary than {old.name}")


def _config(directory: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((directory / "config.json").read_text())
    return content


def _vocabulary(directory: Path) -> object:
    """Token to id. Not the whole file: saving a tokenizer again may reorder what does not matter."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        return None
    content = json.loads(path.read_text())
    added = {token["id"]: token["content"] for token in content.get("added_tokens", [])}
    return content["model"].get("vocab"), added
