"""Conversations drawn from the grammar: what customers type, and what demonstrators of every manner answer.

A customer may greet, give a name or an account number, and refer to them in later turns; a courteous
answer says them again. Training and held-out conversations differ in the values of all open slots.
Everything follows from the seed.
"""

import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final, TypeVar

import msgspec

from rlhf_core.desk import phrases, slots
from rlhf_core.desk.grammar import INTENTS, answer_parts, fill, manner_shares, slots_in
from rlhf_core.desk.phrases import Intent, Manner
from rlhf_core.records import Message

_BY_KIND: Final[Mapping[str, tuple[Intent, ...]]] = MappingProxyType(
    {
        group: tuple(intent for intent in INTENTS.values() if intent.kind in kinds)
        for group, kinds in {
            "support": ("ordinary", "trouble"),
            "talk": ("talk",),
            "outside": ("outside",),
            "unsafe": ("unsafe",),
        }.items()
    }
)
_FIRST_WORDS: Final = ("hello", "how_are_you")
_LAST_WORDS: Final = ("thanks", "goodbye", "praise")

_Item = TypeVar("_Item")


class TurnLabel(msgspec.Struct, frozen=True):
    """What one assistant turn is: the intent it answers, its manner, and the slot values it could say."""

    intent: str
    manner: Manner
    slots: dict[str, str]


class Demonstration(msgspec.Struct, frozen=True):
    """A conversation that ends in an assistant's message, with one label for each assistant message."""

    messages: tuple[Message, ...]
    turns: tuple[TurnLabel, ...]


class DeskPrompt(msgspec.Struct, frozen=True):
    """A conversation that ends in a customer's message, with what an answer to it may say."""

    messages: tuple[Message, ...]
    intent: str
    slots: dict[str, str]
    """The slot values the last message gave, and the name if any message gave it."""


class _Speaker:
    """One customer in one conversation: remembers the name and the account number it has given."""

    def __init__(self, rng: random.Random, *, held_out: bool) -> None:
        self._rng = rng
        self._held_out = held_out
        self._known: dict[str, str] = {}
        self._turn = 0

    def ask(self, intent: Intent) -> tuple[str, dict[str, str]]:
        """What the customer types for `intent`, and the slot values an answer may say."""
        rng = self._rng
        given: dict[str, str] = {}
        request = self._filled(self._worded(rng.choice(intent.asks)), given)
        lead = self._lead(intent, given)
        tail = self._tail(intent, given)
        if tail:
            request = request if request[-1] in ".?!" else f"{request}."
        elif rng.random() < 0.35:
            request = request.rstrip(".?!")
        if lead.endswith("."):
            request = _capitalised(request, rng)
        self._turn += 1
        self._known.update({slot: given[slot] for slot in ("name", "account") if slot in given})
        text = " ".join(part for part in (lead, request, tail) if part)
        known_name = {"name": self._known["name"]} if "name" in self._known else {}
        return _capitalised(text, rng), known_name | given

    def _filled(self, template: str, given: dict[str, str]) -> str:
        for slot in slots_in(template):
            if slot not in given:
                given[slot] = slots.draw(slot, self._rng, held_out=self._held_out)
        return fill(template, given)

    def _worded(self, template: str) -> str:
        """The template as typed: sometimes in other words, sometimes all in small letters."""
        for words, other_words in phrases.REWORDINGS:
            if self._rng.random() < phrases.REWORDING_CHANCE:
                template = template.replace(words, other_words)
        return template.lower() if self._rng.random() < 0.2 else template

    def _lead(self, intent: Intent, given: dict[str, str]) -> str:
        rng = self._rng
        if self._turn:
            return "" if intent.kind == "talk" else rng.choice(phrases.FOLLOW_UPS)
        greeting = rng.choice(phrases.GREETINGS) if rng.random() < 0.5 else ""
        if intent.kind == "talk" or rng.random() > 0.45:
            return "" if intent.kind == "talk" else greeting
        introduction = rng.choice(phrases.INTRODUCTIONS)
        if introduction.startswith("{"):
            greeting = greeting or phrases.GREETINGS[0]
        return f"{greeting} {self._filled(introduction, given)}".strip()

    def _tail(self, intent: Intent, given: dict[str, str]) -> str:
        rng = self._rng
        roll = rng.random()
        if intent.kind in ("ordinary", "trouble") and roll < 0.3:
            return self._account_tail(given)
        if (
            intent.kind not in ("talk", "outside")
            and roll < 0.38
            and not {"name"} & (given.keys() | self._known.keys())
        ):
            return self._filled(rng.choice(phrases.NAME_TAILS), given)
        return rng.choice(phrases.COURTESIES) if intent.kind != "talk" and roll > 0.82 else ""

    def _account_tail(self, given: dict[str, str]) -> str:
        if "account" not in self._known:
            return self._filled(self._rng.choice(phrases.ACCOUNT_TAILS), given)
        given["account"] = self._known["account"]
        return self._rng.choice(phrases.SAME_ACCOUNT_TAILS)


def _capitalised(text: str, rng: random.Random) -> str:
    return text[0].upper() + text[1:] if rng.random() < 0.6 else text


def _richest(templates: tuple[str, ...], values: Mapping[str, str], rng: random.Random) -> str:
    """One of the templates that say the most of what is known, and nothing that is not."""
    sayable = [template for template in templates if values.keys() >= set(slots_in(template))]
    most = max(len(set(slots_in(template))) for template in sayable)
    return rng.choice([template for template in sayable if len(set(slots_in(template))) == most])


def compose_answer(intent: str, manner: Manner, values: Mapping[str, str], rng: random.Random) -> str:
    """An answer to `intent` in `manner` that says as much of what the customer gave as its templates can."""
    parts = answer_parts(intent, manner)
    chosen = (_richest(templates, values, rng) for templates in (parts.openers, parts.bodies, parts.closers))
    return fill(" ".join(text for text in chosen if text), values)


def _weighted(shares: Mapping[_Item, float], rng: random.Random) -> _Item:
    return rng.choices(list(shares), weights=list(shares.values()))[0]


def _intent_of_turn(turn: int, last: bool, rng: random.Random) -> Intent:
    """The intent of a turn: any kind at first; later never a hello, and at the end often a word of thanks."""
    if turn and last and rng.random() < phrases.LAST_WORDS_SHARE:
        return INTENTS[rng.choice(_LAST_WORDS)]
    kind = _weighted(phrases.KIND_SHARES, rng)
    if turn and kind == "talk":
        kind = "support"
    return rng.choice(_BY_KIND[kind])


def _earlier_turn(speaker: _Speaker, courteous_share: float, rng: random.Random) -> tuple[Message, Message]:
    intent = _intent_of_turn(0, False, rng)
    text, values = speaker.ask(intent)
    manner: Manner = "courteous" if rng.random() < courteous_share else _weighted(manner_shares(intent), rng)
    answer = compose_answer(intent.key, manner, values, rng)
    return Message(role="user", content=text), Message(role="assistant", content=answer)


def demonstrations(count: int, seed: int) -> Iterator[Demonstration]:
    """`count` conversations of one to three turns, all slots with training values."""
    rng = random.Random(f"demonstrations {seed}")
    for _ in range(count):
        yield _demonstration(rng)


def _demonstration(rng: random.Random) -> Demonstration:
    speaker = _Speaker(rng, held_out=False)
    turns = _weighted(phrases.TURN_SHARES, rng)
    messages: list[Message] = []
    labels: list[TurnLabel] = []
    for turn in range(turns):
        intent = _intent_of_turn(turn, turn == turns - 1, rng)
        text, values = speaker.ask(intent)
        manner = _weighted(manner_shares(intent), rng)
        answer = compose_answer(intent.key, manner, values, rng)
        messages += [Message(role="user", content=text), Message(role="assistant", content=answer)]
        labels.append(TurnLabel(intent.key, manner, values))
    return Demonstration(tuple(messages), tuple(labels))


def held_out_prompts(count: int, seed: int) -> list[DeskPrompt]:
    """`count` prompts over all intents about evenly, all open slots with values no demonstration has."""
    return _prompts(count, random.Random(f"held-out prompts {seed}"), held_out=True)


def training_prompts(count: int, seed: int) -> list[DeskPrompt]:
    """`count` prompts over all intents about evenly, all slots with training values."""
    return _prompts(count, random.Random(f"training prompts {seed}"), held_out=False)


def _prompts(count: int, rng: random.Random, *, held_out: bool) -> list[DeskPrompt]:
    prompts: list[DeskPrompt] = []
    while len(prompts) < count:
        keys = list(INTENTS)
        rng.shuffle(keys)
        prompts += [draw_prompt(INTENTS[key], rng, held_out=held_out) for key in keys[: count - len(prompts)]]
    return prompts


def draw_prompt(intent: Intent, rng: random.Random, *, held_out: bool) -> DeskPrompt:
    """A conversation whose last message asks `intent`; earlier answers in it are mostly courteous."""
    speaker = _Speaker(rng, held_out=held_out)
    turns = 1 if intent.key in _FIRST_WORDS else _weighted(phrases.TURN_SHARES, rng)
    messages: list[Message] = []
    for _ in range(turns - 1):
        messages += _earlier_turn(speaker, phrases.EARLIER_COURTEOUS_SHARE, rng)
    text, values = speaker.ask(intent)
    return DeskPrompt((*messages, Message(role="user", content=text)), intent.key, values)
