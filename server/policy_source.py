"""Where served policies come from: the ledger names a checkpoint, the checkpoint is verified, loaded and probed.

Also publishes the very first policy, once, from the configured model.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog

from rlhf_core.checkpoints import checkpoint_path, new_checkpoint_id, seal, verify
from rlhf_core.compatibility import require_same_shape
from rlhf_core.engine.engine import probe
from rlhf_core.engine.memory import MemoryPlan, available_memory, check_fits, plan_memory
from rlhf_core.errors import AttuneError, CheckpointError, ConflictError, ModelError
from rlhf_core.models.adapted import base_of, load_adapted
from rlhf_core.models.allocation import returned_when_dropped
from rlhf_core.models.finite import require_finite
from rlhf_core.models.load import LoadedPolicy, fetch_model, load_policy, probe_prompts
from rlhf_core.models.lora import is_adapter
from rlhf_core.models.placement import Device, Precision, choose_device, choose_dtype, packing_helps
from rlhf_core.records import PolicyVersion
from rlhf_core.settings import Settings
from rlhf_core.store.policies import PolicyStore


class PolicySource:
    """Loads published policies. All methods block: call them from a worker thread."""

    def __init__(
        self,
        checkpoints: Path,
        max_context: int,
        *,
        dtype: Precision = "float32",
        device: Device = "cpu",
        pack: bool = False,
        require_fit: Callable[[Path], None] = lambda _directory: None,
    ) -> None:
        """`require_fit` raises ModelError for a directory whose weights there is no room to serve."""
        self._checkpoints = checkpoints
        self._require_fit = require_fit
        self._options: dict[str, Any] = {
            "max_context": max_context,
            "dtype": dtype,
            "device": device,
            "frozen": True,
            "pack": pack,
        }

    def verify(self, version: PolicyVersion) -> None:
        """Every byte against the seal, the seal against the ledger; an adapter's base too. Raises CheckpointError."""
        manifest = verify(checkpoint_path(self._checkpoints, version.checkpoint_id))
        if manifest.base is not None:
            verify(checkpoint_path(self._checkpoints, manifest.base))
        if manifest.weights_sha256 != version.weights_sha256:
            raise CheckpointError(
                f"{version.checkpoint_id} holds weights {manifest.weights_sha256[:12]}, "
                f"but {version.weights_sha256[:12]} were published"
            )

    def compare(self, version: PolicyVersion, serving: LoadedPolicy) -> None:
        """Refuse what could not take over running traffic. Raises CheckpointError."""
        new = checkpoint_path(self._checkpoints, version.checkpoint_id)
        require_same_shape(new, checkpoint_path(self._checkpoints, serving.checkpoint_id))

    def load(self, version: PolicyVersion, serving: LoadedPolicy | None = None) -> LoadedPolicy:
        """Weights, ready to serve; those in memory are shared where an adapter and its base have the same.

        Raises ModelError.
        """
        directory = checkpoint_path(self._checkpoints, version.checkpoint_id)
        identity: dict[str, Any] = {
            "policy_version": version.policy_version,
            "checkpoint_id": version.checkpoint_id,
            "weights_sha256": version.weights_sha256,
        }
        if is_adapter(directory):
            return load_adapted(directory, self._full(base_of(directory), serving), **identity)
        return replace(self._full(directory, serving), **identity)

    def _full(self, directory: Path, serving: LoadedPolicy | None) -> LoadedPolicy:
        resident = None if serving is None else serving.base or serving
        if resident is not None and resident.checkpoint_id == directory.name:
            return resident
        self._require_fit(directory)
        with returned_when_dropped():
            return load_policy(directory, checkpoint_id=directory.name, **self._options)

    def probe(self, policy: LoadedPolicy) -> None:
        """All weights, and the logits of a few greedy tokens, must be finite. Raises ModelError."""
        require_finite(policy)
        probe(policy, probe_prompts(policy.tokenizer))


def source_for_machine(settings: Settings, live: PolicyVersion) -> PolicySource:
    """A source that holds policies as this machine does it best, within its memory.

    Raises ModelError with the numbers when policies of the live one's size do not fit.
    """
    directory = checkpoint_path(settings.checkpoints_path, live.checkpoint_id)
    if is_adapter(directory):
        directory = base_of(directory)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device)
    available = available_memory(device)

    def plan(directory: Path, *, packed: bool) -> MemoryPlan:
        return plan_memory(
            directory,
            max_running=settings.max_running,
            max_context=settings.max_context,
            prefix_cache_tokens=settings.prefix_cache_tokens,
            dtype=dtype,
            device=device,
            packed=packed,
        )

    # The packed copy is for speed alone: it must leave room for trainings beside the server.
    pack = packing_helps(dtype, device) and plan(directory, packed=True).total <= available / 2

    def require_fit(directory: Path) -> None:
        # By what was available at the start: a policy that a restart could not serve is not taken up either. A later
        # one may be larger, stored in float32 after one that is held in bfloat16.
        check_fits(plan(directory, packed=pack), available)

    require_fit(directory)
    structlog.get_logger().info(
        "memory",
        plan=str(plan(directory, packed=pack)),
        available_gib=round(available / 2**30, 2),
        packed=pack,
    )
    return PolicySource(
        settings.checkpoints_path,
        settings.max_context,
        dtype=settings.dtype,
        device=settings.device,
        pack=pack,
        require_fit=require_fit,
    )


def first_servable(source: PolicySource, live: PolicyVersion, ledger: Sequence[PolicyVersion]) -> LoadedPolicy:
    """The live policy, loaded; when it cannot be served, the newest before it that can.

    A server must come up after a bad publication as it stays up through one. Raises the live policy's error when no
    policy can be served.
    """
    earlier = [version for version in reversed(ledger) if version.policy_version < live.policy_version]
    first_error: AttuneError | None = None
    for version in (live, *earlier):
        try:
            source.verify(version)
            policy = source.load(version)
            source.probe(policy)
        except (CheckpointError, ModelError) as error:
            structlog.get_logger().error("cannot serve", policy_version=version.policy_version, reason=str(error))
            first_error = first_error or error
        else:
            return policy
    assert first_error is not None, "there is at least the live policy"
    raise first_error


def publish_first(policies: PolicyStore, settings: Settings) -> PolicyVersion:
    """The live policy; before there is any, the configured model becomes version 1.

    Several servers may start at once: one publishes, the others find it. Raises ModelError when there is no such model.
    """
    live = policies.live() or _publish_configured(policies, settings)
    if policies.reference() is None:
        policies.set_reference(policies.version(1).checkpoint_id)
    return live


def _publish_configured(policies: PolicyStore, settings: Settings) -> PolicyVersion:
    fields = {"checkpoint_id": new_checkpoint_id("policy"), "kind": "policy", "created_at": time.time()}
    root = settings.checkpoints_path
    manifest = seal(root, lambda directory: fetch_model(settings.model, directory), fields)
    try:
        return policies.publish(
            checkpoint_id=manifest.checkpoint_id,
            weights_sha256=manifest.weights_sha256,
            actor="server",
            reason=f"first start with {settings.model}",
            now=time.time(),
            expected_version=0,
        )
    except ConflictError:
        shutil.rmtree(checkpoint_path(root, manifest.checkpoint_id))
        live = policies.live()
        assert live is not None, "a conflict means that something is published"
        return live
