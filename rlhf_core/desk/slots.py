"""The slots of the desk's sentences: what each may hold, and which values are held out of training.

A slot is open (names, numbers, towns, topics: a customer may give any) or closed (weekdays, plans, devices:
a short list). The values of open slots are split by a stable hash of the value itself, so a value is either
seen in training or held out, for ever and on every machine. Most open values are made up, so a model has to
copy them and cannot remember them. A value stands in a sentence after a space and in one spelling, so that
it is the same tokens wherever it appears.
"""

import hashlib
import random
from collections.abc import Callable, Mapping
from types import MappingProxyType

DRAWS_BEFORE_GIVING_UP = 1000


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_REAL_NAMES = _words(
    """
    Ada Adam Agnes Aisha Alan Albert Alice Amir Amy Andrea Andrew Angela Anna Anton Arthur Asha Astrid
    Ben Bella Bruno Callum Carla Carlos Carmen Cathy Chen Chloe Chris Clara Claire Colin Conor Daisy Dan
    Daniel Daria David Deepa Diana Diego Dora Edith Edwin Elena Eli Elif Ella Emeka Emil Emma Eric Erin
    Esther Eva Fatima Felix Fiona Frank Freya Gareth George Gina Grace Greta Hana Hannah Harry Hassan
    Heidi Helen Henry Hugo Ian Ida Imran Ines Ingrid Irene Isaac Isla Ivan Jack James Jana Jane Jasmin
    Joan Joel John Jonas Jose Joy Julia Jun Kamal Karen Karl Kate Kemal Kenji Kim Lara Laura Layla Lea
    Leo Liam Lily Linda Lisa Lucas Lucy Luis Lydia Maria Mark Marta Martin Mary Maya Mei Mia Milan Mina
    Mohamed Mona Nadia Naomi Nina Noah Nora Olga Oliver Omar Oscar Paul Pedro Petra Priya Rachel Ravi
    Rosa Ruth Sam Sara Sean Sofia Stefan Tara Thomas Tom Uma Vera Victor Wanda Yara Yusuf Zoe
    """
)
_STARTS = _words(
    """
    Ba Be Bo Bra Ca Co Da De Do Dra Fa Fe Ga Gre Ha He Jo Ka Ke Ko Kri La Le Lo Ma Me Mi Mo Na Ni No Pa
    Pe Ra Re Ro Sa Se So Sta Ta Te To Tri Va Ve Vo Wa We Wi Ya Za Ze Zo
    """
)
_MIDDLES = _words(
    """
    bi da de di do ka ke la le li lo ma me mi na ne ni ra re ri ro sa se ta te ti va vi
    """
)
_ENDS = _words(
    """
    ba bel da den dra fin ka la lan len lia lin lo ma mir na nel nia ra rek ren ric rin sa sha son ta
    tan ter tin tor vin vo wen za
    """
)
_SURNAME_ENDS = _words(
    """
    berg bury by cott dale field ford gate ham hart ley lock man more ner ridge sen shaw ski stone well
    wood
    """
)
_TOWN_STARTS = _words(
    """
    Alder Ash Barn Birch Bram Bright Cald Carn Cold Dun Elm Fal Fen Gal Glen Hart Hazel Holm Kel Lark
    Lin Mar Mel Mill North Oak Pen Quarn Raven Red Rook Sal Sel Stan Thorn Tor Wal West Whit Win Wolf
    Yar
    """
)
_TOWN_MIDDLES = ("", "", "a", "en", "er", "ing", "le", "s")
_TOWN_ENDS = _words(
    """
    bridge brook bury by combe dale den field ford gate ham hill holt mere minster mouth ness port sby
    stead ton wick wood worth
    """
)
_TOWN_SECONDS = ("", "", "", "", "", "", " Bay", " Cross", " Green", " Heath", " Hill", " Vale")
_COUNTRIES = _words(
    """
    Albania Argentina Austria Belgium Bolivia Brazil Canada Chile China Cuba Denmark Egypt Estonia
    Finland France Germany Ghana Greece Hungary Iceland India Iran Ireland Italy Japan Kenya Latvia
    Malta Mexico Mongolia Morocco Nepal Norway Oman Peru Poland Portugal Romania Samoa Senegal Serbia
    Spain Sudan Sweden Turkey Uganda Vietnam
    """
)
_COUNTRY_ENDS = ("land", "nia", "stan", "via", "dor", "mark")
_DISH_FIRSTS = _words(
    """
    apple bean beetroot carrot cheese chestnut chicken cherry fish garlic ginger honey lemon lentil
    mushroom noodle onion orange pear pepper plum potato pumpkin rice salmon spinach tomato walnut
    """
)
_DISH_SECONDS = _words(
    """
    bake bread broth cake curry dumplings pancakes pasta pie pudding risotto salad soup stew tart
    """
)
_THING_FIRSTS = _words(
    """
    bright blue brave broken clever distant frozen gentle golden green hidden lonely lost noisy polite
    quiet red secret silver sleepy small strange tired wild
    """
)
_THING_SECONDS = _words(
    """
    bicycle bridge cat castle cloud clock dog dragon forest fox garden ghost harbour horse island kite
    lighthouse moon mountain owl piano river robot sailor ship star teapot tiger train whale
    """
)


def _name(rng: random.Random) -> str:
    if rng.random() < 0.2:
        return rng.choice(_REAL_NAMES)
    middle = rng.choice(_MIDDLES) if rng.random() < 0.35 else ""
    return rng.choice(_STARTS) + middle + rng.choice(_ENDS)


def _person(rng: random.Random) -> str:
    surname = rng.choice(_STARTS) + rng.choice(("", "l", "n", "r", "s")) + rng.choice(_SURNAME_ENDS)
    return f"{_name(rng)} {surname}"


def _town(rng: random.Random) -> str:
    return rng.choice(_TOWN_STARTS) + rng.choice(_TOWN_MIDDLES) + rng.choice(_TOWN_ENDS) + rng.choice(_TOWN_SECONDS)


def _country(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return rng.choice(_COUNTRIES)
    return rng.choice(_STARTS) + rng.choice(_MIDDLES) + rng.choice(_COUNTRY_ENDS)


def _pair(firsts: tuple[str, ...], seconds: tuple[str, ...]) -> Callable[[random.Random], str]:
    return lambda rng: f"{rng.choice(firsts)} {rng.choice(seconds)}"


def _digits(count: int) -> Callable[[random.Random], str]:
    return lambda rng: str(rng.randrange(10 ** (count - 1), 10**count))


def _amount(rng: random.Random) -> str:
    return f"{rng.randrange(3, 190)}.{rng.randrange(0, 100, 5):02d}"


_OPEN: Mapping[str, Callable[[random.Random], str]] = MappingProxyType(
    {
        "name": _name,
        "person": _person,
        "account": _digits(6),
        "order": _digits(5),
        "amount": _amount,
        "town": _town,
        "country": _country,
        "dish": _pair(_DISH_FIRSTS, _DISH_SECONDS),
        "thing": _pair(_THING_FIRSTS, _THING_SECONDS),
        "sum": lambda rng: f"{rng.randrange(12, 990)} times {rng.randrange(3, 99)}",
    }
)

CLOSED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "day": ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"),
        "date": tuple(
            f"{day} {month}" for day in (3, 9, 14, 21, 28) for month in ("January", "March", "May", "July", "October")
        ),
        "device": ("laptop", "phone", "tablet", "television", "printer", "games console"),
        "plan": ("Spark 100", "Glow 250", "Beam 500", "Blaze 1000"),
    }
)

_WORD = r"[^\s.,?!]+"
# Liberal on purpose: a wrong copy must still be read as an answer of its kind, to be counted as a wrong copy.
PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "name": _WORD,
        "person": rf"{_WORD}(?: {_WORD}){{0,2}}",
        "account": r"\d+",
        "order": r"\d+",
        "amount": r"\d+(?:\.\d+)?",
        "town": rf"{_WORD}(?: {_WORD})?",
        "country": rf"{_WORD}(?: {_WORD})?",
        "dish": rf"{_WORD}(?: {_WORD})?",
        "thing": rf"{_WORD}(?: {_WORD})?",
        "sum": r"\d+ times \d+",
        "day": _WORD,
        "date": rf"\d+ {_WORD}",
        "device": rf"{_WORD}(?: {_WORD})?",
        "plan": rf"{_WORD} \d+",
    }
)


def is_held_out(value: str) -> bool:
    """Whether an open slot's value is kept out of training: one in ten, by the hash of the value alone."""
    return hashlib.sha256(value.encode()).digest()[-1] % 10 == 9


def draw(slot: str, rng: random.Random, *, held_out: bool) -> str:
    """One value of `slot`, from the training side or the held-out side of an open vocabulary."""
    if slot in CLOSED:
        return rng.choice(CLOSED[slot])
    for _ in range(DRAWS_BEFORE_GIVING_UP):
        value = _OPEN[slot](rng)
        if is_held_out(value) == held_out:
            return value
    side = "held-out" if held_out else "training"
    raise RuntimeError(f"no {side} value of slot {slot!r} in {DRAWS_BEFORE_GIVING_UP} draws")


def vocabulary_dump() -> list[object]:
    """Every constant that decides what the slots can hold, for the grammar's hash."""
    people_and_towns = [_REAL_NAMES, _STARTS, _MIDDLES, _ENDS, _SURNAME_ENDS]
    people_and_towns += [_TOWN_STARTS, _TOWN_MIDDLES, _TOWN_ENDS, _TOWN_SECONDS, _COUNTRIES, _COUNTRY_ENDS]
    topics = [_DISH_FIRSTS, _DISH_SECONDS, _THING_FIRSTS, _THING_SECONDS]
    return [people_and_towns, topics, dict(CLOSED), dict(PATTERNS)]
