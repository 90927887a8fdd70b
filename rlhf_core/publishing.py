"""Publish a directory by hand: seal it if it is not, look inside, compare with what is live, point live at it.

Nothing is published that the server would refuse: the same loading, template and probe checks run here first.
"""

from __future__ import annotations

from pathlib import Path

from rlhf_core.checkpoints import MANIFEST, checkpoint_path, load_manifest, new_checkpoint_id, seal, verify
from rlhf_core.compatibility import require_same_shape
from rlhf_core.engine.engine import probe
from rlhf_core.errors import CheckpointError
from rlhf_core.models.adapted import copy_adapter, load_full, named_base
from rlhf_core.models.load import fetch_model, load_policy, probe_prompts
from rlhf_core.models.lora import is_adapter
from rlhf_core.records import Manifest, PolicyVersion
from rlhf_core.store.policies import PolicyStore


def publish_directory(store: PolicyStore, checkpoints: Path, directory: Path, reason: str, now: float) -> PolicyVersion:
    """Publish a sealed checkpoint, a plain `transformers` directory, or a LoRA adapter in peft's format.

    An adapter changes the checkpoint that it names as its base model, or else the base of the live policy. Raises
    CheckpointError or ModelError.
    """
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    live = store.live()
    manifest = _sealed(checkpoints, directory.resolve(), live, now)
    if manifest.kind != "policy":
        raise CheckpointError(f"{directory} is a {manifest.kind} checkpoint, not a policy")
    if live is not None:
        require_same_shape(
            checkpoint_path(checkpoints, manifest.checkpoint_id), checkpoint_path(checkpoints, live.checkpoint_id)
        )
    policy = load_full(checkpoint_path(checkpoints, manifest.checkpoint_id))
    probe(policy, probe_prompts(policy.tokenizer))
    return store.publish(
        checkpoint_id=manifest.checkpoint_id,
        weights_sha256=manifest.weights_sha256,
        actor="operator",
        reason=reason,
        now=now,
        expected_version=live.policy_version if live else 0,
    )


def _sealed(checkpoints: Path, directory: Path, live: PolicyVersion | None, now: float) -> Manifest:
    """The manifest of the directory inside the checkpoint root, copied and sealed there when it is not yet."""
    if directory.parent == checkpoints.resolve():
        return verify(directory)
    if is_adapter(directory):
        return _sealed_adapter(checkpoints, directory, live, now)
    if (directory / MANIFEST).exists():
        verify(directory)
        parent = load_manifest(directory).checkpoint_id
    else:
        load_policy(directory)
        parent = None
    fields = {
        "checkpoint_id": new_checkpoint_id("policy"),
        "kind": "policy",
        "created_at": now,
        "parent": parent,
    }
    return seal(checkpoints, lambda building: fetch_model(str(directory), building), fields)


def _sealed_adapter(checkpoints: Path, directory: Path, live: PolicyVersion | None, now: float) -> Manifest:
    if live is None:
        raise CheckpointError(f"{directory} is an adapter, and no policy is published whose weights it could change")
    current = load_manifest(checkpoint_path(checkpoints, live.checkpoint_id))
    base = named_base(directory, checkpoints) or current.base or current.checkpoint_id
    fields = {"checkpoint_id": new_checkpoint_id("policy"), "kind": "policy", "created_at": now, "base": base}
    source = checkpoint_path(checkpoints, base)
    return seal(checkpoints, lambda building: copy_adapter(directory, source, building), fields)
