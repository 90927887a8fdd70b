"""Prompts that need not be read again: keys and values of conversations that ended, found by how a new prompt begins.

One store per weight set, so that nothing is ever shared across policies. Bounded in tokens; what was used longest ago
goes first. Plain Python: what is stored is opaque here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

BLOCK = 16
"""Tokens that are matched as one. A conversation is reused up to its last whole block."""


@dataclass(eq=False, slots=True)
class Prefix:
    """How a conversation began, with its keys and values."""

    token_ids: tuple[int, ...]
    saved: Any
    keys: list[int] = field(default_factory=list)
    """Of its first block, first two blocks, and so on."""


class PrefixStore:
    """Prefixes by the hash of each number of whole blocks, least recently used first."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._prefixes: OrderedDict[int, Prefix] = OrderedDict()
        """By `id`: in the order of their last use."""
        self._by_key: dict[int, Prefix] = {}
        self.tokens = 0
        """Tokens stored; at most `max_tokens`."""

    def match(self, prompt: tuple[int, ...]) -> tuple[Prefix, int] | None:
        """The stored prefix that shares the most whole blocks with a prompt, and how many tokens those are.

        At least one token of the prompt is left to compute, because its logits draw the first token.
        """
        found = None
        for count, key in enumerate(_chain(prompt[: len(prompt) - 1]), start=1):
            prefix = self._by_key.get(key)
            if prefix is None:
                break
            found = prefix, count * BLOCK
        # A hash is not proof.
        if found is None or found[0].token_ids[: found[1]] != prompt[: found[1]]:
            return None
        self._prefixes.move_to_end(id(found[0]))
        return found

    def keep(self, token_ids: Sequence[int], save: Callable[[int], Any]) -> None:
        """Store the whole blocks of what a slot holds; `save` copies that many tokens out of it."""
        length = len(token_ids) // BLOCK * BLOCK
        if not 0 < length <= self._max_tokens:
            return
        kept = tuple(token_ids[:length])
        keys = list(_chain(kept))
        longer = self._by_key.get(keys[-1])
        if longer is not None:
            self._prefixes.move_to_end(id(longer))
            return
        prefix = Prefix(kept, save(length), keys)
        # The turn before this one is all in this one.
        known = [self._by_key[key] for key in keys if key in self._by_key]
        for shorter in dict.fromkeys(known):
            if kept[: len(shorter.token_ids)] == shorter.token_ids:
                self._drop(shorter)
        self._add(prefix)
        while self.tokens > self._max_tokens:
            self._drop(next(iter(self._prefixes.values())))

    def clear(self) -> None:
        self._prefixes.clear()
        self._by_key.clear()
        self.tokens = 0

    def _add(self, prefix: Prefix) -> None:
        self._prefixes[id(prefix)] = prefix
        self.tokens += len(prefix.token_ids)
        for key in prefix.keys:
            self._by_key[key] = prefix

    def _drop(self, prefix: Prefix) -> None:
        del self._prefixes[id(prefix)]
        self.tokens -= len(prefix.token_ids)
        for key in prefix.keys:
            if self._by_key.get(key) is prefix:
                del self._by_key[key]


def _chain(token_ids: Sequence[int]) -> Iterator[int]:
    """A hash for each number of whole blocks, each made from the one before."""
    key = 0
    for start in range(0, len(token_ids) - BLOCK + 1, BLOCK):
        key = hash((key, tuple(token_ids[start : start + BLOCK])))
        yield key
