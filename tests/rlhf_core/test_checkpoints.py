import os
import time
from pathlib import Path

import pytest

from rlhf_core.checkpoints import MANIFEST, checkpoint_path, load_manifest, remove_abandoned, seal, verify
from rlhf_core.errors import CheckpointError


def write_files(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"weights" * 100)
    (directory / "config.json").write_text("{}")
    (directory / "chat_template.jinja").write_text("{{ messages }}")


def sealed(root: Path, checkpoint_id: str = "policy-a") -> Path:
    seal(root, write_files, {"checkpoint_id": checkpoint_id, "kind": "policy", "created_at": 1.0})
    return root / checkpoint_id


def test_a_sealed_checkpoint_verifies_and_names_its_weights(tmp_path: Path) -> None:
    directory = sealed(tmp_path)
    manifest = verify(directory)
    assert set(manifest.files) == {"model.safetensors", "config.json", "chat_template.jinja"}
    assert len(manifest.weights_sha256) == 64
    assert manifest == load_manifest(directory)


def test_equal_weights_have_one_identity_and_other_files_do_not_change_it(tmp_path: Path) -> None:
    first = verify(sealed(tmp_path, "policy-a"))
    second = verify(sealed(tmp_path, "policy-b"))
    assert first.weights_sha256 == second.weights_sha256


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(directory: Path) -> None:
        write_files(directory)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        seal(tmp_path, fail, {"checkpoint_id": "policy-a", "kind": "policy", "created_at": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_an_id_is_never_written_twice(tmp_path: Path) -> None:
    sealed(tmp_path)
    with pytest.raises(CheckpointError, match="policy-a already exists"):
        sealed(tmp_path)


@pytest.mark.parametrize("checkpoint_id", ["../etc", "a/b", "", ".hidden", "A", "a..b", "x" * 65])
def test_an_id_cannot_leave_the_root(tmp_path: Path, checkpoint_id: str) -> None:
    with pytest.raises(CheckpointError, match="is not a checkpoint id"):
        checkpoint_path(tmp_path, checkpoint_id)


def test_one_flipped_bit_is_found(tmp_path: Path) -> None:
    directory = sealed(tmp_path)
    path = directory / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[17] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(CheckpointError, match=r"policy-a/model\.safetensors does not match the sha256"):
        verify(directory)


def test_a_truncated_file_a_missing_file_and_an_extra_file_are_found(tmp_path: Path) -> None:
    truncated = sealed(tmp_path, "policy-a")
    with (truncated / "model.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(CheckpointError, match="has 100 bytes, its manifest says 700"):
        verify(truncated)
    missing = sealed(tmp_path, "policy-b")
    (missing / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"policy-b lacks the file config\.json"):
        verify(missing)
    extra = sealed(tmp_path, "policy-c")
    (extra / "adapter.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"holds adapter\.safetensors"):
        verify(extra)


def test_a_link_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    directory = sealed(tmp_path)
    real = tmp_path / "elsewhere"
    (directory / "config.json").rename(real)
    (directory / "config.json").symlink_to(real)
    with pytest.raises(CheckpointError, match=r"lacks the file config\.json"):
        verify(directory)


def test_a_directory_without_its_seal_does_not_exist(tmp_path: Path) -> None:
    directory = sealed(tmp_path)
    (directory / MANIFEST).unlink()
    with pytest.raises(CheckpointError, match="it is not a sealed checkpoint"):
        load_manifest(directory)
    (directory / MANIFEST).write_text('{"checkpoint_id": "policy-a"')
    with pytest.raises(CheckpointError, match="is not a manifest"):
        load_manifest(directory)


def test_files_that_could_run_code_are_refused(tmp_path: Path) -> None:
    def write(directory: Path) -> None:
        write_files(directory)
        (directory / "pytorch_model.bin").write_bytes(b"pickle")

    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        seal(tmp_path, write, {"checkpoint_id": "policy-a", "kind": "policy", "created_at": 1.0})


def test_abandoned_builds_are_removed_and_fresh_ones_kept(tmp_path: Path) -> None:
    old, fresh = tmp_path / ".policy-a.1234.tmp", tmp_path / ".policy-b.1234.tmp"
    old.mkdir()
    fresh.mkdir()
    os.utime(old, (time.time() - 1000, time.time() - 1000))
    assert remove_abandoned(tmp_path, older_than_seconds=500, now=time.time()) == [old.name]
    assert fresh.is_dir()


def test_others_may_read_a_checkpoint(tmp_path: Path) -> None:
    directory = sealed(tmp_path)
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in directory.iterdir())
