"""Where the tokens of documents stand in attention: in views of similar length, side by side.

A view is what one token after the other sees: a document, or of one with branches what they share and one of them. So
what attention costs grows with the number of branches, not with its square, and nothing but what is behind a token is
hidden from it. What is shared is attended to in every view; for two branches that is worth it while what they share is
no longer than one and a half of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SHARED: Final = 0
"""Branch of the tokens that every branch of their document sees."""
SIMILAR: Final = 0.7
"""A view this much shorter than the longest of a group is put into another: its padding costs more than that."""


@dataclass(frozen=True, slots=True)
class View:
    """Tokens by their place in the row, in order."""

    tokens: list[int]
    turn: int
    """How many views of the same document come before it ..."""
    repeated: int
    """... and how many of its first tokens stand in those already."""


@dataclass(frozen=True, slots=True)
class Group:
    """Views side by side, each padded on the right to the longest."""

    views: list[View]
    width: int


@dataclass(frozen=True, slots=True)
class Places:
    """Where heads of tokens, H rows for each of N tokens, stand among the rows of all groups: [views, H, width]."""

    taken: Tensor
    """[P] for each place the row that stands there; behind a view's end its last token again."""
    back: Tensor
    """[N * H] the first place of each row; of rows in no view, any."""
    spare: Tensor
    """Rows in no view."""
    blank: Tensor
    """Places that are nobody's first: behind the ends of views, and ..."""
    again: list[tuple[Tensor, Tensor]]
    """... rows and places where rows stand once more, each row once in a pair."""


def group_views(lengths: Sequence[int], branches: Tensor | None) -> list[Group]:
    """The views of documents that lie one after another in the row, `branches` [N] telling their tokens apart.

    Raises ValueError for a shared token behind a branch, which it does not see.
    """
    told = None if branches is None else branches.tolist()
    views, start = list[View](), 0
    for length in lengths:
        views += _views_of(start, [SHARED] * length if told is None else told[start : start + length])
        start += length
    groups: list[Group] = []
    for view in sorted(views, key=lambda each: -len(each.tokens)):
        if not groups or len(view.tokens) < SIMILAR * groups[-1].width:
            groups.append(Group([], len(view.tokens)))
        groups[-1].views.append(view)
    return groups


def _views_of(start: int, branches: list[int]) -> list[View]:
    """Of the document that begins at `start`."""
    if any(here != SHARED and after == SHARED for here, after in pairwise(branches)):
        raise ValueError("what branches share stands before them")
    own: dict[int, list[int]] = {}
    for at, branch in enumerate(branches, start):
        own.setdefault(branch, []).append(at)
    shared = own.pop(SHARED, [])
    parts = list(own.values()) or [[]]
    return [View(shared + part, turn, len(shared) if turn else 0) for turn, part in enumerate(parts)]


def find_places(groups: Sequence[Group], heads: int, spare: int, device: torch.device) -> Places:
    """Where `heads` rows of each token stand; `spare` tokens behind them stand nowhere."""
    total = 1 + spare + max(view.tokens[-1] for group in groups for view in group.views)
    each = torch.arange(heads)
    back = torch.zeros(total, heads, dtype=torch.long)
    taken, blank, base = list[Tensor](), list[Tensor](), 0
    again: dict[int, list[tuple[Tensor, Tensor]]] = {}
    for group in groups:
        tokens = torch.tensor([_padded(view.tokens, group.width) for view in group.views])
        lengths, repeated, turns = (
            torch.tensor([[count] for count in counts])
            for counts in zip(*((len(view.tokens), view.repeated, view.turn) for view in group.views), strict=True)
        )
        columns = torch.arange(group.width)
        rows = tokens[:, None] * heads + each[:, None]
        taken.append(rows.flatten())
        places = (base + torch.arange(rows.numel())).view(rows.shape).transpose(1, 2)
        first = (columns < lengths) & (columns >= repeated)
        back[tokens[first]] = places[first]
        blank.append(places[~first].flatten())
        for turn in set(turns.flatten().tolist()) - {0}:
            here = (turns == turn) & (columns < repeated)
            again.setdefault(turn, []).append((rows.transpose(1, 2)[here].flatten(), places[here].flatten()))
        base += rows.numel()
    return Places(
        torch.cat(taken).to(device),
        back.flatten().to(device),
        torch.arange((total - spare) * heads, total * heads).to(device),
        torch.cat(blank).to(device),
        [
            (torch.cat([pair[0] for pair in pairs]).to(device), torch.cat([pair[1] for pair in pairs]).to(device))
            for _, pairs in sorted(again.items())
        ],
    )


def _padded(tokens: list[int], width: int) -> list[int]:
    return tokens + tokens[-1:] * (width - len(tokens))


def take(rows: Tensor, places: Places) -> Tensor:
    """Rows [N * H, D] of tokens -> what stands at each place, [P, D]."""
    taken: Tensor = _Take.apply(rows, places.taken, places.back, places.spare, places.again)
    return taken


def take_back(rows: Tensor, places: Places) -> Tensor:
    """Rows [P, D] of places -> those of the tokens' first places, [N * H, D]."""
    taken: Tensor = _Take.apply(rows, places.back, places.taken, places.blank, ())
    return taken


class _Take(torch.autograd.Function):
    """Rows [A, D] -> their rows `taken` [B, D]. The gradient of a row is that of the place `back` it was taken to, and
    of those in `again`; the rows `blank` get none."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        taken: Tensor,
        back: Tensor,
        blank: Tensor,
        again: Sequence[tuple[Tensor, Tensor]],
    ) -> Tensor:
        ctx.places = back, blank, again
        return rows.index_select(0, taken)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        back, blank, again = ctx.places
        given = gradient.index_select(0, back).index_fill_(0, blank, 0.0)
        for rows, places in again:
            given.index_copy_(0, rows, given.index_select(0, rows).add_(gradient.index_select(0, places)))
        return given, None, None, None, None
