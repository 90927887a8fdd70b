"""JSONL and Parquet files, read row by row; what a row means is not known here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from rlhf_core.errors import InvalidRequestError
from rlhf_core.runs.tally import Place


class BadRowError(Exception):
    """Why a row cannot be read. Whoever reads rows turns it into a sentence with the row's place, or a count."""


def read_contents(path: Path) -> Iterator[tuple[Place, Any]]:
    """Each row's place and what it holds, decoded; a BadRowError in place of what is not JSON.

    Raises InvalidRequestError for a file that is missing, or neither JSONL nor Parquet.
    """
    if not path.is_file():
        raise InvalidRequestError(f"there is no data file {path}", param="data")
    if path.suffix == ".parquet":
        return _parquet(path)
    if path.suffix in {".jsonl", ".json", ".ndjson"}:
        return _jsonl(path)
    raise InvalidRequestError(f"{path} is neither JSONL (.jsonl) nor Parquet (.parquet)", param="data")


def _jsonl(path: Path) -> Iterator[tuple[Place, Any]]:
    decode = msgspec.json.Decoder().decode
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                yield Place(str(path), "line", number), decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                yield Place(str(path), "line", number), BadRowError(f"it is not JSON ({error})")


def _parquet(path: Path) -> Iterator[tuple[Place, Any]]:
    try:
        import pyarrow.parquet as parquet
    except ModuleNotFoundError:
        raise InvalidRequestError(f"{path}: reading Parquet needs pyarrow, which is not installed") from None
    number = 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                for content in batch.to_pylist():
                    number += 1
                    yield Place(str(path), "row", number), content
    except (OSError, ValueError) as error:  # pyarrow's errors derive from these two
        raise InvalidRequestError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from None
