"""How many prompt tokens a step may read while answers are running.

A step that also reads a prompt takes longer, and every running answer waits for it. One prompt alone may make a step
longer by SLACK of what it would take without. Where more wait, each is worth as much again, but only in the proportion
in which people wait for a first token rather than for a next one: a burst that finds few answers running is read at
once, and one that finds many is read beside them. What steps and prompt tokens cost is fitted to the latest steps. No
clock here: seconds are told.
"""

from __future__ import annotations

from collections import deque

import numpy as np

SLACK = 0.75
RECENT = 32
"""Steps of each kind, with prompt tokens and without, that the fit looks at."""
LEAST_TOKENS = 8
Sample = tuple[int, int, float]
"""Running answers, prompt tokens, seconds."""


class Pacing:
    """Budget of prompt tokens for the next step."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        # Both kinds are kept, however long a load lasts that makes only one of them: together they tell what a step
        # costs from what a token does.
        self._plain: deque[Sample] = deque(maxlen=RECENT)
        self._mixed: deque[Sample] = deque(maxlen=RECENT)

    def budget(self, *, decoding: int, prompts: int) -> int:
        """Prompt tokens for a step with that many running answers and that many prompts not yet read."""
        if not decoding or not prompts or not self._plain or not self._mixed:
            return self._most_tokens
        step, token = self._costs(decoding)
        worth = SLACK * max(1.0, prompts * prompts / (prompts + decoding))
        return max(LEAST_TOKENS, min(self._most_tokens, round(worth * step / token)))

    def note(self, seconds: float, *, decoding: int, prompt_tokens: int) -> None:
        """A step took that long."""
        kind = self._mixed if prompt_tokens else self._plain
        kind.append((decoding, prompt_tokens, seconds))

    def _costs(self, decoding: int) -> tuple[float, float]:
        """Seconds of a step that reads no prompt, and of each prompt token: least squares of relative errors."""
        samples = np.fromiter(
            (value for kind in (self._plain, self._mixed) for sample in kind for value in sample), float
        )
        samples = samples.reshape(-1, 3)
        weights = 1 / np.maximum(samples[:, 2], 1e-9)
        rows = np.stack([weights, samples[:, 0] * weights, samples[:, 1] * weights])
        normal = rows @ rows.T
        # As many answers in each step would leave their cost and the fixed one undetermined.
        normal.flat[::4] *= 1 + 1e-6
        fixed, answer, token = np.linalg.solve(normal, rows.sum(axis=1))
        least = min(seconds for _, _, seconds in self._plain)
        return max(float(fixed + answer * decoding), least), max(float(token), 1e-9)
