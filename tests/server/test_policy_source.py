"""Which policy a server comes up with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_core.checkpoints import seal
from rlhf_core.engine.memory import plan_memory
from rlhf_core.errors import CheckpointError, ModelError
from rlhf_core.records import PolicyVersion
from rlhf_core.settings import load_settings
from server import policy_source
from server.policy_source import PolicySource, first_servable, source_for_machine
from tests.rlhf_core.families import FAMILIES, make_family
from tests.server.conftest import copy_model

MakeTinyModel = Callable[..., Path]


def published(root: Path, model: Path, number: int, parent: str | None = None) -> PolicyVersion:
    fields = {"checkpoint_id": f"policy-{number}", "kind": "policy", "created_at": 1.0, "parent": parent}
    manifest = seal(root, lambda directory: copy_model(model, directory), fields)
    return PolicyVersion(
        policy_version=number,
        checkpoint_id=manifest.checkpoint_id,
        weights_sha256=manifest.weights_sha256,
        published_at=float(number),
        actor="operator",
        reason="test",
    )


def truncate(root: Path, version: PolicyVersion) -> None:
    with (root / version.checkpoint_id / "model.safetensors").open("r+b") as file:
        file.truncate(100)


def test_a_server_comes_up_with_the_live_policy(tmp_path: Path, tiny_model_dir: Path) -> None:
    ledger = [published(tmp_path, tiny_model_dir, number) for number in (1, 2)]
    assert first_servable(PolicySource(tmp_path, 64), ledger[1], ledger).policy_version == 2


def test_after_a_bad_publication_it_comes_up_with_the_newest_that_can_be_served(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    ledger = [published(tmp_path, tiny_model_dir, number) for number in (1, 2, 3, 4)]
    truncate(tmp_path, ledger[3])
    truncate(tmp_path, ledger[2])
    assert first_servable(PolicySource(tmp_path, 64), ledger[3], ledger).policy_version == 2


def test_when_none_can_be_served_the_live_one_s_error_is_told(tmp_path: Path, tiny_model_dir: Path) -> None:
    ledger = [published(tmp_path, tiny_model_dir, number) for number in (1, 2)]
    for version in ledger:
        truncate(tmp_path, version)
    with pytest.raises(CheckpointError, match="policy-2"):
        first_servable(PolicySource(tmp_path, 64), ledger[1], ledger)


@pytest.fixture
def coarse_and_fine(make_tiny_model: MakeTinyModel, tmp_path: Path) -> list[PolicyVersion]:
    """A policy published in bfloat16, and what was trained from it, which is stored in float32."""
    models = [
        make_family(make_tiny_model, tmp_path / f"model-{dtype}", FAMILIES["llama"](), dtype=dtype)
        for dtype in (torch.bfloat16, torch.float32)
    ]
    root = tmp_path / "data" / "checkpoints"
    return [published(root, models[0], 1), published(root, models[1], 2, parent="policy-1")]


def test_one_that_a_restart_could_not_serve_is_not_taken_up(
    coarse_and_fine: list[PolicyVersion], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data" / "checkpoints"
    settings = load_settings({"ATTUNE_DATA_DIR": str(tmp_path / "data"), "ATTUNE_DTYPE": "float32"})
    sizes = {"max_running": settings.max_running, "max_context": settings.max_context}
    coarse, fine = (
        plan_memory(root / name, prefix_cache_tokens=settings.prefix_cache_tokens, dtype=torch.float32, **sizes).total
        for name in ("policy-1", "policy-2")
    )
    monkeypatch.setattr(policy_source, "available_memory", lambda _device: (coarse + fine) // 2)
    first, second = coarse_and_fine
    source = source_for_machine(settings, first)
    serving = source.load(first)
    assert serving.model.dtype == torch.bfloat16
    with pytest.raises(ModelError, match="the model does not fit"):
        source.load(second, serving)
    with pytest.raises(ModelError, match="the model does not fit"):
        source_for_machine(settings, second)
    monkeypatch.setattr(policy_source, "available_memory", lambda _device: fine)
    assert source_for_machine(settings, first).load(second, serving).model.dtype == torch.float32


def test_a_rollback_may_go_from_float32_to_the_bfloat16_that_it_was_trained_from(
    coarse_and_fine: list[PolicyVersion], make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    root = tmp_path / "data" / "checkpoints"
    source = PolicySource(root, 64)
    first, second = coarse_and_fine
    trained = source.load(second, source.load(first))
    source.compare(first, trained)
    # Another one is refused as ever.
    stranger = make_family(make_tiny_model, tmp_path / "stranger", FAMILIES["llama"](), dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"in BF16, policy-2 has F32"):
        source.compare(published(root, stranger, 3), trained)
