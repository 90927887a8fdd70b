"""What the headers of safetensors files say: names, types and shapes. No weight is read, and no torch."""

from __future__ import annotations

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

Header = dict[str, dict[str, Any]]
"""The name of each tensor to its `dtype` (BF16, F32, ...) and `shape`."""


def read_headers(directory: Path) -> Header:
    """Of all weight files in a directory, together: the first 8 bytes of each are the length of the JSON that follows.

    Raises OSError, ValueError or struct.error for what is no such file.
    """
    found: Header = {}
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError(f"{path.name} is no safetensors file: its header would be longer than itself")
            header = json.loads(file.read(length))
        if not isinstance(header, dict) or not all(isinstance(entry, dict) for entry in header.values()):
            raise ValueError(f"{path.name} is no safetensors file: its header is no table of weights")
        found |= header
    found.pop("__metadata__", None)
    return found


def count_numbers(directory: Path) -> int:
    """Of all weights in a directory. Raises as `read_headers`, and KeyError for a weight without a shape."""
    return sum(prod(entry["shape"]) for entry in read_headers(directory).values())
