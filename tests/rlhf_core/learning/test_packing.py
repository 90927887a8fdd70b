"""Packing: which documents share a row, and what a row looks like."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_core.errors import TrainingError
from rlhf_core.learning.packing import collate, lay_out, one_to_a_row, pack_first_fit, row_width
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


def documents(*lengths: int) -> list[SftExample]:
    return [SftExample(tuple(range(length)), (True,) * length) for length in lengths]


def lengths_of(layout: list[list[list[SftExample]]]) -> list[list[list[int]]]:
    return [[[len(document.token_ids) for document in row] for row in batch] for batch in layout]


def test_short_documents_stand_alone_and_long_rows_of_uneven_ones_are_packed() -> None:
    # Rows of 8, attention at 1 per pair. Packed: one row [5, 2] of width 7, 7 x (1 + 7) = 56. Alone: two rows of
    # width 5, no mask and so half of the pairs, 10 x (1 + 5 / 2) = 35.
    assert lengths_of(lay_out(documents(2, 5), 8, 64, 1.0)) == [[[5], [2]]]
    # Attention for nothing: packed computes 7 tokens, alone 10.
    assert lengths_of(lay_out(documents(2, 5), 8, 64, 0.0)) == [[[5, 2]]]
    # Documents that must not be packed.
    assert lengths_of(lay_out(documents(2, 5), 8, 64, float("inf"))) == [[[5], [2]]]


def test_rows_of_one_document_are_cut_where_padding_or_tokens_would_be_too_many() -> None:
    # At most 2,000 tokens a batch: 3 x 600 fit, a fourth would not. 450 is less than 80 % of 600, and three rows
    # of 600 are more than the least batch, so it would begin a batch even if it fitted. Beside 580 it goes along,
    # because one row is too small a batch; two rows of 580 are not, so 100 does not.
    batches = one_to_a_row(documents(600, 600, 590, 580, 450, 100), 2000)
    assert lengths_of(batches) == [[[600], [600], [590]], [[580], [450]], [[100]]]
    assert lengths_of(one_to_a_row(documents(600, 600, 450), 2000)) == [[[600], [600]], [[450]]]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(min_value=1, max_value=40), min_size=1, max_size=40),
    st.sampled_from([0.0, 0.01, 1.0, float("inf")]),
)
def test_a_layout_holds_every_document_once_within_its_bounds(lengths: list[int], pair_cost: float) -> None:
    layout = lay_out(documents(*lengths), 40, 120, pair_cost)
    assert sorted(length for batch in lengths_of(layout) for row in batch for length in row) == sorted(lengths)
    assert all(row_width(batch) * len(batch) <= 120 and row_width(batch) <= 40 for batch in layout)


def test_rows_of_one_document_need_no_mask() -> None:
    assert collate([[each] for each in documents(2, 3)], 3, 0).one_each
    assert not collate([documents(2, 3)], 5, 0).one_each
