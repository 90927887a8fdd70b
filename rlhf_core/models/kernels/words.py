"""The words that the threads of a crew share: an int64 array, in which what several of them write stands far apart."""

from __future__ import annotations

from typing import Final

HANDS: Final = 0
"""Threads that work, the caller's own among them; none once the crew is dismissed."""
TICKET: Final = 8
"""Turn of the task in the upper half, parts that nobody has taken in the lower."""
LEFT: Final = 0xFFFFFFFF
LAST_TURN: Final = 0x7FFFFFFF
DONE: Final = 16
"""Parts of the task that have ended."""
MADE: Final = 17
"""Those of them that were done: not those that found no memory."""
COUNT: Final = 24
"""Parts into which it is cut."""
TASK: Final = 25
"""Which it is, and from here on what it works on: as parts.py reads it."""
DOER: Final = 56
"""The address of what does a part: `part_doer()`."""
WORDS: Final = 64
MULTIPLY, ADD_WEIGHED, GATE, ATTEND, ATTEND_SPAN, DRAW = 1, 2, 3, 4, 5, 6
