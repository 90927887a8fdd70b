"""The grammar of the support desk: which answers each manner can give to an intent, and how to read one back.

An answer is made of parts (opener, body, closer), each one of a few templates with slots. The same parts
build the pattern that recognises an answer, so an answer is either exactly of a manner or of none. Knows
nothing of customers' turns (demonstrations.py) or of taste (raters.py).
"""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import Final, get_args

import msgspec

from rlhf_core.desk import phrases, slots
from rlhf_core.desk.intents_account import ACCOUNT
from rlhf_core.desk.intents_billing import BILLING
from rlhf_core.desk.intents_network import NETWORK
from rlhf_core.desk.intents_orders import ORDERS
from rlhf_core.desk.intents_talk import OUTSIDE, TALK
from rlhf_core.desk.intents_unsafe import UNSAFE
from rlhf_core.desk.phrases import Intent, Manner

MANNERS: Final[tuple[Manner, ...]] = get_args(Manner)
INTENTS: Final[Mapping[str, Intent]] = MappingProxyType(
    {intent.key: intent for intent in (*BILLING, *NETWORK, *ACCOUNT, *ORDERS, *TALK, *OUTSIDE, *UNSAFE)}
)

_SLOT = re.compile(r"\{(\w+)\}")


class Recognition(msgspec.Struct, frozen=True):
    """An answer read back: its manner, and every slot value it says, as often as it is said."""

    manner: Manner
    captured: tuple[tuple[str, str], ...]

    @property
    def slots(self) -> dict[str, str]:
        """The slot values said; of a slot said twice, the last."""
        return dict(self.captured)


class AnswerParts(msgspec.Struct, frozen=True):
    """The templates from which every answer of one manner to one intent is put together."""

    openers: tuple[str, ...]
    bodies: tuple[str, ...]
    closers: tuple[str, ...]


def slots_in(template: str) -> tuple[str, ...]:
    """The names of the slots in a template, in order."""
    return tuple(_SLOT.findall(template))


def fill(template: str, values: Mapping[str, str]) -> str:
    """The template with its slots filled; KeyError names a slot without a value."""
    return _SLOT.sub(lambda match: values[match[1]], template)


def manner_shares(intent: Intent) -> Mapping[Manner, float]:
    """How often demonstrations answer this intent in each manner; sums to one."""
    return phrases.UNSAFE_SHARES if intent.kind == "unsafe" else phrases.ORDINARY_SHARES


@cache
def answer_parts(intent_key: str, manner: Manner) -> AnswerParts:
    """The parts of the answers to an intent in a manner; KeyError when demonstrations never mix the two."""
    intent = INTENTS[intent_key]
    if manner not in manner_shares(intent):
        raise KeyError(f"intent {intent_key!r} is never answered in the manner {manner!r}")
    if manner == "courteous":
        openers, closers = phrases.COURTEOUS_OPENERS[intent.kind], phrases.COURTEOUS_CLOSERS[intent.kind]
        return AnswerParts(openers, _bodies(intent, manner), closers)
    return AnswerParts(phrases.OPENERS[manner], _bodies(intent, manner), phrases.CLOSERS[manner])


def _bodies(intent: Intent, manner: Manner) -> tuple[str, ...]:
    bodies: Mapping[Manner, tuple[str, ...]] = {
        "courteous": intent.courteous,
        "curt": intent.curt,
        "rambling": intent.courteous,
        "unhelpful": intent.unhelpful or phrases.UNHELPFUL_BODIES,
        "rude": intent.rude or phrases.RUDE_BODIES,
        "unsafe": intent.unsafe,
    }
    return tuple(body.replace("{about}", intent.about) for body in bodies[manner])


@cache
def _pattern(intent_key: str, manner: Manner) -> tuple[re.Pattern[str], tuple[str, ...]]:
    """The pattern of every answer to an intent in a manner, and the slot that each of its groups captures."""
    parts = answer_parts(intent_key, manner)
    slot_of_group: list[str] = []
    pattern = (
        _alternatives(parts.openers, slot_of_group, after=" ")
        + _alternatives(parts.bodies, slot_of_group)
        + _alternatives(parts.closers, slot_of_group, before=" ")
    )
    return re.compile(rf"\s*{pattern}\s*"), tuple(slot_of_group)


def _alternatives(templates: tuple[str, ...], slot_of_group: list[str], before: str = "", after: str = "") -> str:
    """A pattern for any one of the templates; an empty template stands without the spaces around it."""
    texts = [f"{before}{_template_pattern(text, slot_of_group)}{after}" if text else "" for text in templates]
    return f"(?:{'|'.join(texts)})"


def _template_pattern(template: str, slot_of_group: list[str]) -> str:
    pieces = _SLOT.split(template)
    slot_of_group.extend(pieces[1::2])
    return "".join(
        f"({slots.PATTERNS[piece]})" if index % 2 else re.escape(piece) for index, piece in enumerate(pieces)
    )


def recognise(intent: str, answer: str) -> Recognition | None:
    """The manner in which `answer` answers `intent` and the slot values it says; None when it does not."""
    for manner in manner_shares(INTENTS[intent]):
        pattern, groups = _pattern(intent, manner)
        match = pattern.fullmatch(answer)
        if match is not None:
            said = zip(groups, match.groups(), strict=True)
            return Recognition(manner, tuple((slot, value) for slot, value in said if value is not None))
    return None


def slots_repeated_rightly(recognition: Recognition, values: Mapping[str, str]) -> bool | None:
    """Whether every slot value the answer says is the one the customer gave; None when it says none."""
    if not recognition.captured:
        return None
    return all(values.get(slot) == value for slot, value in recognition.captured)


def greatest_4gram_repeat(text: str) -> int:
    """How often the most repeated run of four words occurs; 0 for fewer than four words."""
    words = text.split()
    runs = Counter(tuple(words[start : start + 4]) for start in range(len(words) - 3))
    return max(runs.values(), default=0)


def grammar_hash() -> str:
    """The SHA-256 of all templates and constants, so that a model can name the language it was taught."""
    dump = [
        [msgspec.to_builtins(intent) for intent in INTENTS.values()],
        {name: _plain(value) for name, value in vars(phrases).items() if name.isupper() and not name.startswith("_")},
        _plain(slots.vocabulary_dump()),
    ]
    return hashlib.sha256(msgspec.json.encode(dump, order="deterministic")).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
