"""Packing: which documents share a row, and what a row looks like."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import TrainingError
from rlhf_core.learning.packing import collate, pack_first_fit
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


def test_a_row_restarts_positions_and_numbers_its_documents() -> None:
    first = SftExample((7, 8, 9), (False, True, True))
    second = SftExample((5, 6), (False, True))
    batch = collate([[first, second]], 6, pad_token_id=0)
    assert batch.input_ids.tolist() == [[7, 8, 9, 5, 6, 0]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert batch.segment_ids.tolist() == [[1, 1, 1, 2, 2, 0]]
    assert batch.response_mask.tolist() == [[False, True, True, False, True, False]]


def test_attention_looks_back_within_a_document_only() -> None:
    batch = collate([[SftExample((7, 8), (False, True)), SftExample((5, 6), (False, True))]], 5, pad_token_id=0)
    mask = batch.attention_mask(torch.float32)
    allowed = (mask[0, 0] == 0).tolist()
    assert mask.shape == (1, 1, 5, 5)
    assert allowed == [
        [True, False, False, False, False],
        [True, True, False, False, False],
        [False, False, True, False, False],
        [False, False, True, True, False],
        [False, False, False, False, True],
    ]
