"""What a run says while it goes on: a line of JSON per update, a bar on a terminal, TensorBoard's event files.

Only the main process speaks; in the others every method does nothing.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from accelerate.tracking import TensorBoardTracker
from accelerate.utils import is_tensorboard_available
from tqdm import tqdm

METRICS: Final = "metrics.jsonl"
TENSORBOARD: Final = "tensorboard"


class Journal:
    """Writes into a run directory. `last` is the newest metrics, for the run's record."""

    def __init__(self, directory: Path, *, is_main: bool, after_step: int = 0) -> None:
        """`after_step`: a resumed run keeps the lines up to there, so that no update is told twice."""
        self.last: dict[str, float | None] = {}
        self._path = directory / METRICS
        self._bar: tqdm[Any] | None = None
        self._tracker: TensorBoardTracker | None = None
        self._is_main = is_main
        if is_main:
            self._keep_lines(after_step)
            self._start_tensorboard(directory, after_step)

    def _keep_lines(self, after_step: int) -> None:
        lines = self._path.read_text(encoding="utf-8").splitlines() if self._path.exists() else []
        kept = [line for line in lines if _step(line) <= after_step]
        self._path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        if kept:
            self.last = json.loads(kept[-1])

    def _start_tensorboard(self, directory: Path, after_step: int) -> None:
        if is_tensorboard_available():
            self._tracker = TensorBoardTracker(TENSORBOARD, directory, purge_step=after_step + 1)
            self._tracker.start()

    def log(self, metrics: Mapping[str, float]) -> None:
        """One update's metrics. What is not finite is written as null, which JSON has."""
        self.last = dict(metrics)
        if not self._is_main:
            return
        line = json.dumps({name: value if math.isfinite(value) else None for name, value in metrics.items()})
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if self._tracker is not None:
            self._tracker.log(dict(metrics), step=int(metrics.get("step", 0)))

    def progress(self, stage: str, share: float) -> None:
        """Move the bar, where somebody looks at a terminal."""
        if not (self._is_main and sys.stderr.isatty()):
            return
        if self._bar is None:
            form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            self._bar = tqdm(total=1.0, bar_format=form, file=sys.stderr, leave=False)
        self._bar.set_description_str(stage, refresh=False)
        if (loss := self.last.get("loss")) is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.n = min(1.0, share)
        self._bar.refresh()

    def say(self, text: str) -> None:
        """A sentence for people, on stderr, above the bar."""
        if self._is_main:
            tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Take the bar away and end the event files. May be called again."""
        if self._bar is not None:
            self._bar.close()
        if self._tracker is not None:
            self._tracker.finish()
            self._tracker = None


def _step(line: str) -> float:
    try:
        step: float = json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return math.inf  # a line that a kill cut short
    return step
