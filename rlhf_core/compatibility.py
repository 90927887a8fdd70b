"""Whether one policy checkpoint can take over the traffic of another: same template, shape, vocabulary, and dtype.

Reads the small files alone; no torch. The server asks before it loads, the command line before it publishes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rlhf_core.checkpoints import checkpoint_path, load_manifest
from rlhf_core.errors import CheckpointError
from rlhf_core.weight_files import read_headers

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
FINENESS = {"F16": 1, "BF16": 1, "F32": 2, "F64": 3}
"""Of the dtypes that weights may have, by their safetensors names. Training computes, and saves, in F32."""


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
    # An adapter has few weights of its own, and its base was compared when it was published.
    if load_manifest(new).base is None and load_manifest(old).base is None:
        _require_same_weights(new, old)


def _require_same_weights(new: Path, old: Path) -> None:
    """Raises CheckpointError where a weight has another shape, or is stored more coarsely or as something else.

    What a checkpoint was trained from may be coarser than it: that is how training goes, and a rollback goes back.
    """
    ours, theirs, back = read_headers(new), read_headers(old), _was_trained_from(old, new.name)
    for name in sorted(ours.keys() & theirs.keys()):
        shape, dtype, was = ours[name]["shape"], ours[name]["dtype"], theirs[name]["dtype"]
        if shape != theirs[name]["shape"]:
            raise CheckpointError(f"{new.name} has {name} of {shape}, {old.name} has {theirs[name]['shape']}")
        if dtype != was and not back and FINENESS.get(dtype, 0) <= FINENESS.get(was, 0):
            raise CheckpointError(f"{new.name} has {name} in {dtype}, {old.name} has {was}")


def _was_trained_from(directory: Path, checkpoint_id: str) -> bool:
    """Whether this checkpoint is among those that a sealed one goes back to, as far as they are still there."""
    seen: set[str] = set()
    while directory.is_dir() and directory.name not in seen:
        seen.add(directory.name)
        manifest = load_manifest(directory)
        if checkpoint_id in (manifest.parent, manifest.reference):
            return True
        if manifest.parent is None:
            return False
        directory = checkpoint_path(directory.parent, manifest.parent)
    return False


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
