"""Directories that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from rlhf_core.checkpoints import sync_directory


def write_aside(final: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a directory under another name, sync it and rename it; an earlier one is replaced."""
    aside = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        write(aside)
        for path in aside.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        shutil.rmtree(final, ignore_errors=True)
        aside.rename(final)
        sync_directory(final.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise
