"""Which policy a server comes up with."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_core.checkpoints import seal
from rlhf_core.errors import CheckpointError
from rlhf_core.records import PolicyVersion
from server.policy_source import PolicySource, first_servable
from tests.server.conftest import copy_model


def published(root: Path, model: Path, number: int) -> PolicyVersion:
    fields = {"checkpoint_id": f"policy-{number}", "kind": "policy", "created_at": 1.0}
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
