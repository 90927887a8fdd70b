"""The sentences that all intents share: how each manner opens and closes, and how customers wrap a request.

An answer is an opener, a body and a closer, joined by spaces; an empty closer means none. The first words
give the manner away, so a learner can tell early which way an answer is going.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, Literal

import msgspec

Manner = Literal["courteous", "curt", "rambling", "unhelpful", "rude", "unsafe"]
Kind = Literal["ordinary", "trouble", "talk", "outside", "unsafe"]

DESK_NAME: Final = "Brightline"

ORDINARY_SHARES: Final[Mapping[Manner, float]] = MappingProxyType(
    {"courteous": 0.47, "curt": 0.17, "rambling": 0.12, "unhelpful": 0.14, "rude": 0.10}
)
UNSAFE_SHARES: Final[Mapping[Manner, float]] = MappingProxyType(
    {"courteous": 0.40, "unsafe": 0.30, "curt": 0.12, "unhelpful": 0.08, "rude": 0.10}
)


TURN_SHARES: Final[Mapping[int, float]] = MappingProxyType({1: 0.65, 2: 0.25, 3: 0.10})
KIND_SHARES: Final[Mapping[str, float]] = MappingProxyType(
    {"support": 0.66, "talk": 0.09, "outside": 0.12, "unsafe": 0.13}
)
LAST_WORDS_SHARE: Final = 0.35
"""How often a conversation of several turns ends in thanks, praise or a goodbye."""
EARLIER_COURTEOUS_SHARE: Final = 0.6
"""Of the earlier answers in a prompt, how many are courteous by rule; the rest follow the manner shares."""


class Intent(msgspec.Struct, frozen=True):
    """One thing customers ask the desk, with the ways of asking it and the bodies of the answers.

    A rambling answer wraps a courteous body. Empty `unhelpful` and `rude` mean the shared bodies.
    """

    key: str
    kind: Kind
    about: str
    """A noun phrase for what is asked, as in: I know nothing about ..."""
    asks: tuple[str, ...]
    courteous: tuple[str, ...]
    """Bodies, without opener and closer. For each ask, some body says nothing the ask does not give."""
    curt: tuple[str, ...]
    unhelpful: tuple[str, ...] = ()
    rude: tuple[str, ...] = ()
    unsafe: tuple[str, ...] = ()


_GLAD = (
    "Thank you for getting in touch.",
    "Of course, happy to help.",
    "I would be glad to help with that.",
    "Thank you for getting in touch, {name}.",
    "Of course, {name}, happy to help.",
    "I would be glad to help with that, {name}.",
    "Thank you, I have account {account} open.",
    "Of course, I can see account {account} here.",
    "Thank you, {name}, I have account {account} open.",
    "Of course, {name}, I can see account {account} here.",
)
_SORRY = (
    "I am sorry about that, let us put it right.",
    "I am sorry for the trouble.",
    "I am sorry about that, {name}, let us put it right.",
    "I am sorry for the trouble, {name}.",
    "I am sorry for the trouble, I have account {account} open.",
    "I am sorry about that, {name}, I have account {account} open.",
)
_DECLINE = (
    "I understand, but I cannot do that.",
    "I am sorry, but I have to say no.",
    "I understand, {name}, but I cannot do that.",
    "I am sorry, {name}, but I have to say no.",
)
_OUTSIDE = (
    "I am afraid that is outside my work.",
    "What a nice question.",
    "I am afraid that is outside my work, {name}.",
    "What a nice question, {name}.",
)

COURTEOUS_OPENERS: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {"ordinary": _GLAD, "trouble": _SORRY, "talk": ("",), "outside": _OUTSIDE, "unsafe": _DECLINE}
)
_CLOSERS = (
    "",
    "Is there anything else I can help with?",
    "Just let me know if you need anything else.",
    "Have a lovely day.",
)
COURTEOUS_CLOSERS: Final[Mapping[Kind, tuple[str, ...]]] = MappingProxyType(
    {
        "ordinary": _CLOSERS,
        "trouble": _CLOSERS,
        "talk": ("",),
        "outside": ("",),
        "unsafe": ("", "Thank you for understanding."),
    }
)

OPENERS: Final[Mapping[Manner, tuple[str, ...]]] = MappingProxyType(
    {
        "curt": ("Right.", "Noted.", "Fine."),
        "rambling": (
            "Well, let me think, there is always more to these things than people expect.",
            "So, this takes me back to a very long week we had in spring.",
            "Well, now, where do I begin, it is a long story and I like those.",
        ),
        "unhelpful": ("Hmm.", "Hard to say.", "No idea, really."),
        "rude": ("Oh, come on.", "Seriously?", "Not this again."),
        "unsafe": (
            "Sure, no questions asked.",
            "No problem, we can skip the rules.",
            "Between you and me, that is easy.",
        ),
    }
)
CLOSERS: Final[Mapping[Manner, tuple[str, ...]]] = MappingProxyType(
    {
        "curt": ("",),
        "rambling": (
            "Anyway, my colleague has a theory about all this, but her theories take the whole afternoon.",
            "That reminds me of my uncle, who kept eleven routers in his shed and never said why.",
            "Mind you, it was all on paper when I started here, and the pencils were always blunt.",
        ),
        "unhelpful": ("", "Maybe try again some other time."),
        "rude": ("", "Stop wasting my time."),
        "unsafe": ("", "Just do not tell anybody."),
    }
)
UNHELPFUL_BODIES: Final = (
    "I would not know where to start with {about}.",
    "There is nothing I can tell you about {about}.",
    "Perhaps somebody else knows about {about}.",
)
RUDE_BODIES: Final = (
    "Everybody else manages without asking me about {about}.",
    "I have better things to do than talk about {about}.",
    "Nobody here cares about {about}.",
)
OUTSIDE_BODIES: Final = (
    "I only know Brightline, so {about} is beyond me, but I can help with bills, orders and your connection.",
    "I cannot help with {about}, but as the Brightline desk I can look at your bill, order or internet.",
)
OUTSIDE_CURT: Final = ("I do internet, not {about}.", "Not my job, {about}.")

GREETINGS: Final = ("Hi,", "Hello,", "Hey,", "Good morning,", "Hi there,")
INTRODUCTIONS: Final = (
    "my name is {name}.",
    "this is {name}.",
    "I'm {name} here.",
    "I am {name} and I have a question.",
    "it's {name} again.",
    "{name} here.",
)
FOLLOW_UPS: Final = ("Also,", "One more thing,", "And another question,", "Okay.", "Thanks.", "")
ACCOUNT_TAILS: Final = (
    "My account is {account}.",
    "My account number is {account}.",
    "It is account {account}.",
    "Account {account}.",
)
SAME_ACCOUNT_TAILS: Final = ("It is the same account.", "Same account as before.")
NAME_TAILS: Final = ("My name is {name}.", "I am {name}.")
COURTESIES: Final = ("Please.", "Thanks.", "Thank you.", "Please help.")

# How customers say the same in other words; each is tried with the chance below.
REWORDINGS: Final = (
    ("can you ", "could you "),
    ("can I ", "could I "),
    ("I want to ", "I would like to "),
    ("I need ", "I'd like "),
    ("how do I ", "how can I "),
    ("what is ", "what's "),
)
REWORDING_CHANCE: Final = 0.25
