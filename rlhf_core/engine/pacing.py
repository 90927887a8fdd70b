"""How many prompt tokens a step may read while answers are running.

A step that also reads a prompt takes longer, and every running answer waits for it. One prompt alone may make a step
longer by ALONE of what it would take without. Where more wait, each is worth SLACK of it, but only in the proportion in
which people wait for a first token rather than for a next one: a burst that finds few answers running is read at once,
and one that finds many is read beside them. A part is never so small that beginning it takes longer than reading
it. What all this costs is measured as it runs. No clock here: seconds are told.
"""

from __future__ import annotations

from collections import deque

SLACK = 0.75
ALONE = 0.5
RECENT = 32
"""Steps with prompt tokens that are looked at."""
NEWEST = 0.2
"""Weight of the newest step without."""
LEAST_TOKENS = 8
STEEPEST = 3.0
"""How many times what a token seems to cost, beginning included, it may cost less: noise can hide a line's slope, and a
part that is large because beginning seems dear would hold everyone up."""
LEAST_SPREAD = 0.25
"""Standard deviation of the sizes of parts, as a share of their mean, from which a line through them means anything."""


class Pacing:
    """Budget of prompt tokens for the next step."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._plain: dict[int, float] = {}
        """Running answers to the seconds of a step that reads no prompt."""
        self._mixed: deque[tuple[int, float]] = deque(maxlen=RECENT)
        """Prompt tokens of a step, and the seconds that they added."""
        self._token: float | None = None
        """Seconds of one token, as parts of different sizes last told."""

    def budget(self, *, decoding: int, prompts: int) -> int:
        """Prompt tokens for a step with that many running answers and that many prompts not yet read."""
        if not decoding or not prompts or not self._plain or not self._mixed:
            return self._most_tokens
        beginning, token = self._reading()
        worth = max(ALONE, SLACK * prompts * prompts / (prompts + decoding))
        affordable = (worth * self._step(decoding) - beginning) / token
        return round(min(self._most_tokens, max(affordable, beginning / token, LEAST_TOKENS)))

    def note(self, seconds: float, *, decoding: int, prompt_tokens: int) -> None:
        """A step took that long."""
        if prompt_tokens:
            self._mixed.append((prompt_tokens, max(0.0, seconds - self._step(decoding))))
        else:
            before = self._plain.get(decoding, seconds)
            self._plain[decoding] = before + NEWEST * (seconds - before)

    def _step(self, decoding: int) -> float:
        """Seconds without a prompt: the least that was measured of so many answers or more, as fewer cost no more.

        Too little where only fewer were ever measured. What is missing then counts as the beginning of a part, which
        costs pace but stops nothing.
        """
        if not decoding or not self._plain:
            return 0.0
        as_many = [seconds for count, seconds in self._plain.items() if count >= decoding]
        return min(as_many) if as_many else self._plain[max(self._plain)]

    def _reading(self) -> tuple[float, float]:
        """Seconds of beginning a part, and of each of its tokens: the line of least squares, neither below zero.

        Parts that are all of a size do not tell the two apart: then a token costs what it did before.
        """
        count = len(self._mixed)
        tokens = sum(size for size, _ in self._mixed) / count
        seconds = sum(added for _, added in self._mixed) / count
        through_zero = max(seconds / tokens, 1e-9)
        spread = sum((size - tokens) ** 2 for size, _ in self._mixed) / count
        if spread >= (LEAST_SPREAD * tokens) ** 2:
            rise = sum((size - tokens) * (added - seconds) for size, added in self._mixed) / count
            self._token = max(rise / spread, through_zero / STEEPEST)
        token = min(self._token or through_zero, through_zero)
        return seconds - token * tokens, token
