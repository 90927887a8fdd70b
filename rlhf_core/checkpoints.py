"""Sealed checkpoint directories: write aside, seal, then point.

A checkpoint is built in a hidden directory beside its final place; its files are synced and hashed, the manifest is
written last, and one rename makes it visible. Whatever has no valid manifest does not exist. No torch here: weights
are files. Weights are safetensors only; nothing that would run code on loading is accepted.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from rlhf_core.errors import CheckpointError
from rlhf_core.records import FileSeal, Manifest

MANIFEST = "manifest.json"
_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_FORBIDDEN_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".py", ".ckpt")


def new_checkpoint_id(kind: str) -> str:
    """A fresh id, `policy-` or `reward-` and 12 hex digits."""
    return f"{kind}-{uuid.uuid4().hex[:12]}"


def checkpoint_path(root: Path, checkpoint_id: str) -> Path:
    """Where a checkpoint lives. Raises CheckpointError for an id that is not one: ids never leave the root."""
    if not _ID.fullmatch(checkpoint_id) or ".." in checkpoint_id:
        raise CheckpointError(f"{checkpoint_id!r} is not a checkpoint id")
    return root / checkpoint_id


def seal(root: Path, write: Callable[[Path], None], manifest_fields: Mapping[str, Any]) -> Manifest:
    """Let `write` fill a hidden directory, seal it, and rename it to its id under `root`.

    `manifest_fields` are those of Manifest except files, weights_sha256 and template_sha256. On any failure the
    hidden directory is removed and nothing is visible. Raises CheckpointError when the id already exists.
    """
    final = checkpoint_path(root, str(manifest_fields["checkpoint_id"]))
    if final.exists():
        raise CheckpointError(f"checkpoint {final.name} already exists")
    root.mkdir(parents=True, exist_ok=True)
    building = root / f".{final.name}.{uuid.uuid4().hex[:8]}.tmp"
    building.mkdir()
    try:
        write(building)
        manifest = _manifest(building, manifest_fields)
        write_synced(building / MANIFEST, msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        sync_directory(building)
        building.rename(final)
        sync_directory(root)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return manifest


def load_manifest(directory: Path) -> Manifest:
    """Read the seal. Raises CheckpointError when it is missing or not a manifest."""
    try:
        return msgspec.json.decode((directory / MANIFEST).read_bytes(), type=Manifest)
    except FileNotFoundError:
        raise CheckpointError(f"{directory} has no {MANIFEST}: it is not a sealed checkpoint") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{directory / MANIFEST} is not a manifest: {error}") from None


def verify(directory: Path) -> Manifest:
    """Check every file against the seal. Raises CheckpointError naming the first file that differs."""
    manifest = load_manifest(directory)
    present = {path.name for path in directory.iterdir()} - {MANIFEST}
    if extra := sorted(present - set(manifest.files)):
        raise CheckpointError(f"{directory.name} holds {extra[0]}, which its manifest does not list")
    for name, expected in manifest.files.items():
        _verify_file(directory, name, expected)
    return manifest


def _verify_file(directory: Path, name: str, expected: FileSeal) -> None:
    if "/" in name or name.startswith(".."):
        raise CheckpointError(f"{directory.name} names the file {name!r}, outside itself")
    path = directory / name
    if path.is_symlink() or not path.is_file():
        raise CheckpointError(f"{directory.name} lacks the file {name}")
    if (size := path.stat().st_size) != expected.size:
        raise CheckpointError(f"{directory.name}/{name} has {size} bytes, its manifest says {expected.size}")
    if file_sha256(path) != expected.sha256:
        raise CheckpointError(f"{directory.name}/{name} does not match the sha256 in its manifest")


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_abandoned(root: Path, older_than_seconds: float, now: float) -> list[str]:
    """Delete hidden build directories that a killed writer left. Returns their names."""
    removed = []
    for path in root.glob(".*.tmp"):
        if now - path.stat().st_mtime > older_than_seconds:
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path.name)
    return removed


def _manifest(directory: Path, fields: Mapping[str, Any]) -> Manifest:
    files: dict[str, FileSeal] = {}
    for path in sorted(directory.iterdir()):
        if path.is_dir() or path.is_symlink() or path.suffix in _FORBIDDEN_SUFFIXES:
            raise CheckpointError(f"a checkpoint holds plain data files only, not {path.name}")
        path.chmod(0o644)
        _sync_file(path)
        files[path.name] = FileSeal(path.stat().st_size, file_sha256(path))
    weights = hashlib.sha256()
    for name, sealed in files.items():
        if name.endswith(".safetensors"):
            weights.update(f"{name}:{sealed.sha256}\n".encode())
    template = directory / "chat_template.jinja"
    return Manifest(
        files=files,
        weights_sha256=weights.hexdigest(),
        template_sha256=file_sha256(template) if template.exists() else "",
        **fields,
    )


def write_synced(path: Path, content: bytes) -> None:
    """Write a whole file and wait until it is on disk; others may read it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    path.chmod(0o644)


def _sync_file(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Wait until the directory's entries are on disk: a rename lasts only then."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
