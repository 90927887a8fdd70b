"""How many prompt tokens a step may read while answers are running.

A step that also reads a prompt takes longer, and every running answer waits for it. One prompt alone may make a step
twice as long as it would be without; each further prompt that waits is worth as much again, so that a burst is read
quickly. What a step and a prompt token cost is measured as they run. No clock here: seconds are told.
"""

from __future__ import annotations

RECENT = 0.2
"""Weight of the newest measurement."""
LEAST_TOKENS = 8


class Pacing:
    """Budget of prompt tokens for the next step."""

    def __init__(self, most_tokens: int) -> None:
        self._most_tokens = most_tokens
        self._step: float | None = None
        """Seconds of a step that reads no prompt."""
        self._token: float | None = None
        """Seconds that a prompt token adds."""

    def budget(self, *, decoding: int, prompts: int) -> int:
        """Prompt tokens for a step with that many running answers and that many prompts not yet read."""
        if not decoding or not prompts or self._step is None or self._token is None:
            return self._most_tokens
        return max(LEAST_TOKENS, min(self._most_tokens, round(prompts * self._step / self._token)))

    def note(self, seconds: float, *, decoding: int, prompt_tokens: int) -> None:
        """A step took that long."""
        if not prompt_tokens:
            self._step = _blend(self._step, seconds)
        elif not decoding:
            self._token = _blend(self._token, seconds / prompt_tokens)
        elif self._step is not None:
            self._token = _blend(self._token, max(0.0, seconds - self._step) / prompt_tokens)


def _blend(before: float | None, newest: float) -> float:
    return newest if before is None else before + RECENT * (newest - before)
