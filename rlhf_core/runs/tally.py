"""What was read of the data, and what was left out and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from rlhf_core.errors import InvalidRequestError

SHOWN = 3
"""Skipped rows that are named; the others are only counted."""


class Place(NamedTuple):
    """Where a row stands; `number` counts lines of JSONL or rows of Parquet, from 1."""

    file: str
    unit: str
    number: int

    def __str__(self) -> str:
        return f"{self.file}, {self.unit} {self.number}"


@dataclass(slots=True)
class Tally:
    """Counts rows. `refuse` ends the command, or with `skip_bad` counts the row and goes on."""

    skip_bad: bool = False
    rows: int = 0
    skipped: int = 0
    unapproved: int = 0
    """Demonstrations whose review did not approve them: left out without being bad."""
    examples: list[str] = field(default_factory=list)
    """The first rows that were skipped, with their reasons."""

    def refuse(self, place: Place, reason: str) -> None:
        """Raises InvalidRequestError naming file, line and reason, unless bad rows are to be skipped."""
        sentence = f"{place}: {reason}"
        if not self.skip_bad:
            raise InvalidRequestError(f"{sentence} (--skip-bad leaves such rows out)", param="data")
        self.skipped += 1
        if len(self.examples) < SHOWN:
            self.examples.append(sentence)

    @property
    def used(self) -> int:
        return self.rows - self.skipped - self.unapproved

    def as_counts(self) -> dict[str, int]:
        """For the run record."""
        return {"rows": self.rows, "used": self.used, "skipped": self.skipped, "unapproved": self.unapproved}

    def lines(self) -> list[str]:
        """For people: what was read and what was not."""
        said = f"{self.rows} rows read"
        if self.unapproved:
            said += f", {self.unapproved} not approved in review and left out"
        if self.skipped:
            said += f", {self.skipped} bad and skipped"
        return [said, *(f"  skipped {each}" for each in self.examples)]
