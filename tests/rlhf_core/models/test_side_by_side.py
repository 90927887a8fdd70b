"""Views of documents by hand: which tokens they are of, where these stand, and what comes back from there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from rlhf_core.models.side_by_side import Places, find_places, group_views, take, take_back

CPU = torch.device("cpu")
BRANCHED = torch.tensor([0, 0, 1, 2, 2, 0])
"""A document of two shared tokens with branches of one and of two, and one of a single token."""


def places(heads: int = 1, spare: int = 0) -> Places:
    return find_places(group_views([5, 1], BRANCHED), heads, spare, CPU)


def test_each_branch_is_a_view_of_what_is_shared_and_its_own() -> None:
    groups = group_views([5, 1], BRANCHED)
    assert [[view.tokens for view in group.views] for group in groups] == [[[0, 1, 3, 4], [0, 1, 2]], [[5]]]
    assert [[(view.turn, view.repeated) for view in group.views] for group in groups] == [[(1, 2), (0, 0)], [(0, 0)]]
    assert [[view.tokens for view in group.views] for group in group_views([2, 3], None)] == [[[2, 3, 4]], [[0, 1]]]


def test_what_it_costs_grows_with_the_number_of_branches() -> None:
    branches = torch.tensor([0] * 20 + [branch for branch in (1, 2, 3, 4) for _ in range(10)])
    (group,) = group_views([60], branches)
    assert (len(group.views), group.width) == (4, 30)


def test_a_shared_token_behind_a_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="what branches share stands before them"):
        group_views([4], torch.tensor([0, 1, 0, 2]))


def test_where_rows_stand() -> None:
    found = places(spare=2)
    # The longer view first; the shorter one is padded with its last token.
    assert found.taken.tolist() == [0, 1, 3, 4, 0, 1, 2, 2, 5]
    # First places are those in the first view of a document; spare tokens have none.
    assert found.back.tolist() == [4, 5, 6, 2, 3, 8, 0, 0]
    assert found.blank.tolist() == [0, 1, 7]
    assert [(rows.tolist(), places.tolist()) for rows, places in found.again] == [([0, 1], [0, 1])]


def test_heads_stand_apart() -> None:
    found = places(heads=2)
    assert found.taken.view(-1)[:8].tolist() == [0, 2, 6, 8, 1, 3, 7, 9]
    assert found.taken[found.back].tolist() == list(range(12))


def test_gradients_come_back_from_all_places_of_a_row() -> None:
    found, rows = places(spare=1), torch.arange(7.0)[:, None].requires_grad_()
    weights = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [7.0], [100.0], [9.0]])
    (take(rows, found) * weights).sum().backward()
    # A token that two views share: 1 + 5 and 2 + 6. What stands behind an end counts for nothing.
    assert rows.grad is not None
    assert rows.grad.flatten().tolist() == [6.0, 8.0, 7.0, 3.0, 4.0, 9.0, 0.0]


def test_only_first_places_are_read_back() -> None:
    found, rows = places(spare=1), torch.arange(9.0)[:, None].requires_grad_()
    read: Tensor = take_back(rows, found)
    assert read.flatten().tolist() == [4.0, 5.0, 6.0, 2.0, 3.0, 8.0, 0.0]
    (read * torch.arange(1.0, 8.0)[:, None]).sum().backward()
    assert rows.grad is not None
    assert rows.grad.flatten().tolist() == [0.0, 0.0, 4.0, 5.0, 1.0, 2.0, 3.0, 0.0, 6.0]


def test_what_three_branches_share_learns_from_each() -> None:
    found = find_places(group_views([4], torch.tensor([0, 1, 2, 3])), 1, 0, CPU)
    rows = torch.zeros(4, 1, requires_grad=True)
    take(rows, found).sum().backward()
    assert rows.grad is not None
    assert rows.grad.flatten().tolist() == [3.0, 1.0, 1.0, 1.0]
