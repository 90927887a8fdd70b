"""Scripted people: customers who ask the desk, and raters who judge its answers.

The raters' taste, stated: courteous, helpful and safe is good, all else is bad. They read an answer
through the grammar, so they see its manner exactly, and err on purpose in a stated share of cases. An
answer the grammar does not know is bad.
"""

import random
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec

from rlhf_core.desk.demonstrations import DeskPrompt, draw_prompt
from rlhf_core.desk.grammar import INTENTS, recognise, slots_repeated_rightly
from rlhf_core.desk.phrases import Manner
from rlhf_core.records import ChoiceValue, RatingValue, Side

Flaw = Literal["inaccurate", "unknown"] | Manner

BADNESS: Final[Mapping[Flaw, int]] = MappingProxyType(
    {
        "courteous": 0,
        "curt": 1,
        "rambling": 2,
        "unhelpful": 3,
        "inaccurate": 3,
        "unknown": 4,
        "rude": 5,
        "unsafe": 5,
    }
)
"""0 is good. Between two bad answers a rater may still prefer the less bad one."""

REASONS: Final[Mapping[Flaw, tuple[str, ...]]] = MappingProxyType(
    {
        "courteous": ("accurate", "helpful", "right_tone"),
        "curt": ("too_short", "tone"),
        "rambling": ("too_long",),
        "unhelpful": ("unhelpful",),
        "inaccurate": ("inaccurate",),
        "unknown": ("inaccurate", "unhelpful"),
        "rude": ("tone", "unhelpful"),
        "unsafe": ("harmful",),
    }
)
TIE_SHARE: Final = 0.5
"""How often two good answers are called a tie; otherwise one is picked by chance."""
BOTH_BAD_SHARE: Final = 0.5
"""How often two answers, one less bad, are called both bad; otherwise the less bad one is picked."""


class Judgement(msgspec.Struct, frozen=True):
    """One rating of one answer, with one reason key of rlhf_core.records or more."""

    value: RatingValue
    reasons: tuple[str, ...]


def flaw_of(prompt: DeskPrompt, answer: str) -> Flaw:
    """What a rater sees first in an answer: a harmful manner, else a wrong copy, else its manner."""
    recognition = recognise(prompt.intent, answer)
    if recognition is None:
        return "unknown"
    if recognition.manner in ("rude", "unsafe"):
        return recognition.manner
    return "inaccurate" if slots_repeated_rightly(recognition, prompt.slots) is False else recognition.manner


def is_good(prompt: DeskPrompt, answer: str) -> bool:
    """Whether the answer is courteous, helpful and safe, and says nothing the customer did not give."""
    return flaw_of(prompt, answer) == "courteous"


class Rater:
    """A rater. Judgements follow from the seed and the order of calls; `noise` is the wrong share."""

    def __init__(self, seed: int, noise: float = 0.05) -> None:
        if not 0 <= noise < 0.5:
            raise ValueError(f"noise must be at least 0 and below 0.5, not {noise}")
        self._rng = random.Random(f"rater {seed}")
        self._noise = noise

    def rate(self, prompt: DeskPrompt, answer: str) -> Judgement:
        """Up for a good answer, down for a bad one, with reasons; a wrong one has a vague reason."""
        flaw = flaw_of(prompt, answer)
        good = flaw == "courteous"
        if self._rng.random() < self._noise:
            return Judgement("down", ("unhelpful",)) if good else Judgement("up", ("helpful",))
        return Judgement("up" if good else "down", REASONS[flaw])

    def choose(self, prompt: DeskPrompt, left: str, right: str) -> ChoiceValue:
        """The better of two answers to one prompt; a wrong judgement picks the other side. Never skips."""
        choice = self._taste(BADNESS[flaw_of(prompt, left)], BADNESS[flaw_of(prompt, right)])
        wrong = self._rng.random() < self._noise
        if wrong and choice in ("left", "right"):
            return "right" if choice == "left" else "left"
        return choice

    def _taste(self, left: int, right: int) -> ChoiceValue:
        roll = self._rng.random()
        better: Side = "left" if left < right else "right"
        if left == right == 0:
            return "tie" if roll < TIE_SHARE else self._rng.choice(("left", "right"))
        if left == right:
            return "both_bad"
        if left and right:
            return "both_bad" if roll < BOTH_BAD_SHARE else better
        return better


class Customer:
    """Asks the desk about anything it knows, in training slot values: held-out prompts stay unseen."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(f"customer {seed}")
        self._intents = tuple(INTENTS.values())

    def next_prompt(self) -> DeskPrompt:
        """The next conversation that waits for an answer."""
        return draw_prompt(self._rng.choice(self._intents), self._rng, held_out=False)
