"""Several documents in one row, so that a batch holds no padding to speak of.

A packed row is exact: positions restart at each document and attention never crosses from one into another, so
every token's logprob equals the one it has alone in its row. Documents are opaque here; only lengths and weights
matter.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from rlhf_core.errors import TrainingError


class Document(Protocol):
    """Anything with token ids and, for each of them, whether it is a target."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The whole document, end token included."""

    @property
    def response_mask(self) -> Sequence[bool]:
        """True where the token counts; as long as `token_ids`."""


class PackedBatch(NamedTuple):
    """B rows of T tokens. Padding has segment 0; the documents of a row are segments 1, 2, and so on."""

    input_ids: Tensor
    """[B, T] long."""
    position_ids: Tensor
    """[B, T] long, restarting at 0 in each document."""
    segment_ids: Tensor
    """[B, T] long."""
    response_mask: Tensor
    """[B, T] bool, True counts."""

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """Additive mask [B, 1, T, T]: 0 where a token may look, the dtype's lowest number elsewhere.

        Padding looks at the padding before it, so no row of the softmax is empty and nothing becomes NaN.
        """
        same = self.segment_ids[:, :, None] == self.segment_ids[:, None, :]
        allowed = same & torch.ones_like(same[0]).tril()
        blocked = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
        return blocked.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]

    def to(self, device: torch.device) -> "PackedBatch":
        """The same batch on `device`."""
        return PackedBatch(*(tensor.to(device) for tensor in self))


def pack_first_fit(lengths: Sequence[int], row_tokens: int) -> list[list[int]]:
    """Indices of the documents of each row: first-fit decreasing, which wastes at most 2/9 of the rows it needs.

    Raises TrainingError for a document longer than a row.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        if lengths[index] > row_tokens:
            raise TrainingError(f"document {index} has {lengths[index]} tokens, a row holds {row_tokens}")
        row = next((at for at, left in enumerate(room) if left >= lengths[index]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(row_tokens)
        rows[row].append(index)
        room[row] -= lengths[index]
    return rows


def collate(rows: Sequence[Sequence[Document]], row_tokens: int, pad_token_id: int) -> PackedBatch:
    """Lay the documents of each row end to end into a batch [B, T] with T = `row_tokens`."""
    shape = (len(rows), row_tokens)
    input_ids = torch.full(shape, pad_token_id, dtype=torch.long)
    position_ids = torch.zeros(shape, dtype=torch.long)
    segment_ids = torch.zeros(shape, dtype=torch.long)
    response_mask = torch.zeros(shape, dtype=torch.bool)
    for at, start, segment, document in _placed(rows):
        span = slice(start, start + len(document.token_ids))
        input_ids[at, span] = torch.tensor(document.token_ids)
        position_ids[at, span] = torch.arange(len(document.token_ids))
        segment_ids[at, span] = segment
        response_mask[at, span] = torch.tensor(document.response_mask)
    return PackedBatch(input_ids, position_ids, segment_ids, response_mask)


def _placed(rows: Sequence[Sequence[Document]]) -> Iterator[tuple[int, int, int, Document]]:
    """Row, first column, segment number and document, for every document of every row."""
    for at, row in enumerate(rows):
        start = 0
        for segment, document in enumerate(row, start=1):
            yield at, start, segment, document
            start += len(document.token_ids)
