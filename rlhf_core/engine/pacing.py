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
LATELY = 500
"""Steps without prompt tokens after which what one of them took is old: the machine may be another by then."""
CHEAPEST = 8
"""One part in so many is put down to luck. The next cheapest says what beginning takes: others were held up besides."""
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
        self._plain: dict[int, tuple[float, int]] = {}
        """Running answers to the seconds of a step that reads no prompt, and to the number of the last such step."""
        self._plain_steps = 0
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
            before, _ = self._plain.get(decoding, (seconds, 0))
            self._plain_steps += 1
            self._plain[decoding] = before + NEWEST * (seconds - before), self._plain_steps

    def _step(self, decoding: int) -> float:
        """Seconds without a prompt: the least that was measured lately of so many answers or more, as fewer cost no
        more.

        Too little where only fewer were ever measured. What is missing then counts as the beginning of a part, which
        costs pace but stops nothing.
        """
        if not decoding or not self._plain:
            return 0.0
        as_many = [measured for count, measured in self._plain.items() if count >= decoding]
        if not as_many:
            return self._plain[max(self._plain)][0]
        lately = max(number for _, number in as_many) - LATELY
        return min(seconds for seconds, number in as_many if number > lately)

    def _reading(self) -> tuple[float, float]:
        """Seconds of beginning a part, and of each of its tokens, neither below zero.

        A token costs what the line of least squares says. Parts that are all of a size do not tell: then it costs what
        it did before. The beginning is what is left of the cheaper parts, since steps that something else made slow
        would pass for a dear beginning, which makes parts large.
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
        beginnings = sorted(added - token * size for size, added in self._mixed)
        return max(0.0, beginnings[count // CHEAPEST]), token
