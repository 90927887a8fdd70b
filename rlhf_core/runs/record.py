"""The record of a run: what was asked, so that it can be repeated, and compared when a run is resumed."""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import msgspec

from rlhf_core.checkpoints import file_sha256, write_synced
from rlhf_core.errors import ConflictError, InvalidRequestError
from rlhf_core.models.load import locate_model
from rlhf_core.runs.options import read_lora

RECORD: Final = "run.json"
LIBRARIES: Final = ("torch", "transformers", "peft", "accelerate", "safetensors", "tokenizers", "numpy")
NOT_COMPARED: Final = frozenset({"out", "resume", "force", "keep_every", "data", "model", "run"})
"""Options in which a resumed run may differ, or that are compared by content instead."""
MODELS_BESIDE: Final = ("reward", "judge", "served", "previous")
"""Options that may name a directory of weights beside `--model`."""


class RunRecord(msgspec.Struct, kw_only=True):
    """What `run.json` holds."""

    command: str
    settings: dict[str, Any]
    """Every option and every setting, those left at their defaults too."""
    data: dict[str, str]
    """sha256 of each data file, in the order of reading."""
    beside: dict[str, str] = {}
    """sha256 of the weights or files that other options name, by option."""
    model: str
    model_sha256: str
    """Over the names and hashes of its weight files, as a sealed checkpoint has it."""
    processes: int
    libraries: dict[str, str]
    started_at: float
    resumed_at: list[float] = msgspec.field(default_factory=list)
    finished_at: float | None = None
    outcome: str = "running"
    """running, done, stopped, or failed with its sentence; a run that was killed says running for ever."""
    counts: dict[str, int] = msgspec.field(default_factory=dict)
    metrics: dict[str, float | None] = msgspec.field(default_factory=dict)
    """Of the last update, or of the whole; null was not finite."""


def describe_run(
    command: str,
    options: argparse.Namespace,
    settings: msgspec.Struct,
    *,
    model: Path,
    processes: int,
    threads: int,
) -> RunRecord:
    """The record of a run that is about to start. Raises InvalidRequestError for a data file that is not there."""
    said = {name: value for name, value in vars(options).items() if name not in NOT_COMPARED}
    said |= msgspec.to_builtins(settings)
    if lora := read_lora(options):
        said |= {f"lora_{name}": value for name, value in msgspec.to_builtins(lora).items()}
    beside = {name: weights_sha256(path) for name, path in models_beside(options).items()}
    if shown := getattr(options, "demonstrations", None):
        beside["demonstrations"] = " ".join(_sha256(path, "demonstrations") for path in shown)
    return RunRecord(
        command=command,
        # As JSON gives it back, so that it compares equal to what was kept.
        settings=msgspec.json.decode(msgspec.json.encode(said | {"threads": threads}, enc_hook=str)),
        data={str(path): _sha256(path) for path in options.data},
        beside=beside,
        model=str(options.model),
        model_sha256=weights_sha256(model),
        processes=processes,
        libraries={name: version(name) for name in LIBRARIES},
        started_at=time.time(),
    )


def models_beside(options: argparse.Namespace) -> dict[str, Path]:
    """The directories of weights that the options name beside `--model`, by option; a function has none."""
    given = {name: str(getattr(options, name, None) or "") for name in MODELS_BESIDE}
    # Only --served may name a model by its hub id.
    found = {
        name: locate_model(value) if name == "served" else Path(value).expanduser()
        for name, value in given.items()
        if value
    }
    return {name: path for name, path in found.items() if path.is_dir()}


def weights_sha256(directory: Path) -> str:
    """The identity of the weights in a directory."""
    weights = hashlib.sha256()
    for path in sorted(directory.glob("*.safetensors")):
        weights.update(f"{path.name}:{file_sha256(path)}\n".encode())
    return weights.hexdigest()


def _sha256(path: Path, option: str = "data") -> str:
    if not path.is_file():
        raise InvalidRequestError(f"there is no data file {path}", param=option)
    return file_sha256(path)


def save_record(directory: Path, record: RunRecord) -> None:
    aside = directory / f".{RECORD}.tmp"
    write_synced(aside, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")
    aside.replace(directory / RECORD)


def load_record(directory: Path) -> RunRecord:
    """Raises ConflictError when there is no run in `directory`."""
    try:
        return msgspec.json.decode((directory / RECORD).read_bytes(), type=RunRecord)
    except (OSError, msgspec.MsgspecError) as error:
        raise ConflictError(f"{directory} holds no run to resume: {error}") from None


def refuse_taken(directory: Path) -> None:
    """Raise ConflictError for a directory that holds anything."""
    if directory.is_file() or (directory.is_dir() and any(directory.iterdir())):
        found = "a run: --resume goes on with it" if (directory / RECORD).is_file() else "not empty"
        raise ConflictError(f"{directory} is {found}" if found == "not empty" else f"{directory} holds {found}")


def resumed(directory: Path, asked: RunRecord) -> RunRecord:
    """The record of the run in `directory`, which `asked` wants to go on with.

    Raises ConflictError naming the first difference, or when that run is finished.
    """
    kept = load_record(directory)
    if kept.outcome == "done":
        raise ConflictError(f"{directory} is finished: there is nothing to resume")
    if kept.command != asked.command:
        raise ConflictError(f"{directory} is a run of `attune {kept.command}`, not of `attune {asked.command}`")
    _refuse_other(directory, "option --{}", kept.settings, asked.settings)
    _refuse_other(directory, "content of --{}", kept.beside, asked.beside)
    _refuse_other(directory, "content of data file {}", _by_number(kept.data), _by_number(asked.data))
    _refuse_other(directory, "{}", {"model": kept.model_sha256}, {"model": asked.model_sha256})
    _refuse_other(directory, "{}", {"number of processes": kept.processes}, {"number of processes": asked.processes})
    kept.resumed_at.append(time.time())
    kept.outcome, kept.libraries = "running", asked.libraries
    return kept


def _by_number(data: Mapping[str, str]) -> dict[str, str]:
    """Files may have moved; their order and content may not have changed."""
    return {str(number): sha256[:16] for number, sha256 in enumerate(data.values(), start=1)}


def _refuse_other(directory: Path, what: str, kept: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    for name in [*kept, *(each for each in asked if each not in kept)]:
        before, now = kept.get(name), asked.get(name)
        if before != now:
            said = what.format(name.replace("_", "-") if "--{}" in what else name)
            raise ConflictError(f"the run in {directory} cannot be resumed: {said} was {before} and is now {now}")
