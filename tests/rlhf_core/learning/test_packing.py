"""Packing: which documents share a row, and what a row looks like."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import TrainingError
from rlhf_core.learning.packing import PackedBatch, cut, pack_first_fit
from rlhf_core.learning.sft import SftExample


def test_first_fit_decreasing_by_hand() -> None:
    # Rows of 10. Longest first: 7 opens a row (3 left), 5 opens a row (5 left), 4 fits the second (1 left), 3
    # fits the first.
    assert pack_first_fit([3, 4, 5, 7], 10) == [[3, 0], [2, 1]]


def test_a_document_longer_than_a_row_is_refused_by_its_length() -> None:
    with pytest.raises(TrainingError, match="11 tokens, a row holds 10"):
        pack_first_fit([11], 10)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(min_value=1, max_value=20), max_size=40))
def test_every_document_is_packed_once_and_no_row_overflows(lengths: list[int]) -> None:
    rows = pack_first_fit(lengths, 20)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in row) <= 20 for row in rows)


def documents(*lengths: int) -> list[SftExample]:
    return [SftExample(tuple(range(length)), (True,) * length) for length in lengths]


def test_documents_lie_end_to_end_and_positions_restart() -> None:
    first = SftExample((7, 8, 9), (False, True, True))
    second = SftExample((5, 6), (False, True))
    batch = PackedBatch.of([first, second], torch.device("cpu"))
    # A document's last token is only predicted.
    assert batch.token_ids.tolist() == [7, 8, 5]
    assert batch.targets.tolist() == [8, 9, 6]
    assert batch.documents.positions.tolist() == [0, 1, 0]
    assert batch.response_mask.tolist() == [True, True, True]


def test_a_document_that_predicts_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one token"):
        PackedBatch.of(documents(3, 1), torch.device("cpu"))


def test_targets_in_a_prompt_weigh_what_is_said_and_those_in_a_response_one() -> None:
    first, second = SftExample((4, 1, 2), (False, True, True)), SftExample((5, 9, 6), (False, False, True))
    batch = PackedBatch.of([first, second], torch.device("cpu"))
    assert batch.weights(0.25).tolist() == [1, 1, 0.25, 1]
    assert batch.weights(0.0).tolist() == [1, 1, 0, 1]


def test_batches_are_cut_before_they_hold_too_many_tokens() -> None:
    # 3 + 4 fit into 8 and 2 more do not; 9 are too many for any batch and get one of their own.
    assert [[len(each.token_ids) for each in batch] for batch in cut(documents(3, 4, 2, 9, 1), 8)] == [
        [3, 4],
        [2],
        [9],
        [1],
    ]
    assert cut([], 8) == []


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(min_value=1, max_value=40), max_size=40))
def test_every_document_is_in_one_batch_within_the_bound(lengths: list[int]) -> None:
    batches = [[len(each.token_ids) for each in batch] for batch in cut(documents(*lengths), 60)]
    assert [length for batch in batches for length in batch] == lengths
    assert all(sum(batch) <= 60 for batch in batches)
