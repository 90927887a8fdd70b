"""Publish a directory by hand: seal it if it is not, look inside, compare with what is live, point live at it.

Nothing is published that the server would refuse: the same loading, template and probe checks run here first.
"""

from __future__ import annotations

from pathlib import Path

from rlhf_core.checkpoints import MANIFEST, checkpoint_path, load_manifest, new_checkpoint_id, seal, verify
from rlhf_core.compatibility import require_same_shape
from rlhf_core.engine.engine import probe
from rlhf_core.errors import CheckpointError
from rlhf_core.models.load import fetch_model, load_policy, probe_prompts
from rlhf_core.records import Manifest, PolicyVersion
from rlhf_core.store.policies import PolicyStore


def publish_directory(store: PolicyStore, checkpoints: Path, directory: Path, reason: str, now: float) -> PolicyVersion:
    """Publish a sealed checkpoint or a plain `transformers` directory. Raises CheckpointError or ModelError."""
    if not directory.is_dir():
        raise CheckpointError(f"{directory} is not a directory")
    live = store.live()
    manifest = _sealed(checkpoints, directory.resolve(), now)
    if manifest.kind != "policy":
        raise CheckpointError(f"{directory} is a {manifest.kind} checkpoint, not a policy")
    if live is not None:
        require_same_shape(
            checkpoint_path(checkpoints, manifest.checkpoint_id), checkpoint_path(checkpoints, live.checkpoint_id)
        )
    policy = load_policy(checkpoint_path(checkpoints, manifest.checkpoint_id))
    probe(policy, probe_prompts(policy.tokenizer))
    return store.publish(
        checkpoint_id=manifest.checkpoint_id,
        weights_sha256=manifest.weights_sha256,
        actor="operator",
        reason=reason,
        now=now,
        expected_version=live.policy_version if live else 0,
    )


def _sealed(checkpoints: Path, directory: Path, now: float) -> Manifest:
    """The manifest of the directory inside the checkpoint root, copied and sealed there when it is not yet."""
    if directory.parent == checkpoints.resolve():
        return verify(directory)
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
