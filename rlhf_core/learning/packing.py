"""How documents are laid out in batches that hold little padding: several in one row, or each in a row of its own.

A packed row is exact: positions restart at each document and attention never crosses from one into another, so
every token's logprob equals the one it has alone in its row. But attention is then computed for the whole row and
masked; where documents are short against a row, rows of one document each, with others of similar length, cost less.
Documents are opaque here; only lengths and weights matter.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, Protocol, TypeVar

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


Doc = TypeVar("Doc", bound=Document)

LEAST_TOKENS: Final = 1024
"""A batch of fewer tokens is not cut for the sake of its padding: each forward pass has a price of its own."""
MOST_PADDING: Final = 0.2
"""A row that would be padded by more than this share goes to the next batch."""


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

    @property
    def one_each(self) -> bool:
        """Whether no row holds more than one document: ordinary causal attention is then exact, without a mask."""
        return int(self.segment_ids.max()) <= 1

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


def lay_out(documents: Sequence[Doc], row_tokens: int, batch_tokens: int, pair_cost: float) -> list[list[list[Doc]]]:
    """Batches of rows of documents: packed, or one to a row, whichever computes less.

    `pair_cost` is what one more pair of tokens in attention costs, in units of what a token costs elsewhere; infinite
    where documents must not be packed. Raises TrainingError for a document longer than a row.
    """
    packed = [
        [documents[at] for at in row] for row in pack_first_fit([len(d.token_ids) for d in documents], row_tokens)
    ]
    size = max(1, batch_tokens // row_tokens)
    together = [packed[start : start + size] for start in range(0, len(packed), size)]
    alone = one_to_a_row(documents, batch_tokens)
    return min(alone, together, key=lambda batches: sum(_cost(batch, pair_cost) for batch in batches))


def one_to_a_row(documents: Sequence[Doc], batch_tokens: int) -> list[list[list[Doc]]]:
    """Batches of rows of one document, of similar length; each at most `batch_tokens` with its padding, or one row."""
    batches: list[list[list[Doc]]] = []
    for document in sorted(documents, key=lambda each: -len(each.token_ids)):
        if not batches or not _belongs(document, batches[-1], batch_tokens):
            batches.append([])
        batches[-1].append([document])
    return batches


def _belongs(document: Document, batch: Sequence[Sequence[Document]], batch_tokens: int) -> bool:
    """Whether a document goes into a batch whose first row is its longest."""
    width = len(batch[0][0].token_ids)
    if (len(batch) + 1) * width > batch_tokens:
        return False
    return len(document.token_ids) >= (1 - MOST_PADDING) * width or len(batch) * width < LEAST_TOKENS


def row_width(rows: Sequence[Sequence[Document]]) -> int:
    """Tokens of the longest row."""
    return max(sum(len(document.token_ids) for document in row) for row in rows)


def _cost(rows: Sequence[Sequence[Document]], pair_cost: float) -> float:
    """Of one batch, padding included, in tokens. Causal attention without a mask computes half of its pairs."""
    width = row_width(rows)
    if all(len(row) == 1 for row in rows):
        return len(rows) * width * (1 + (pair_cost * width / 2 if pair_cost < float("inf") else 0.0))
    return len(rows) * width * (1 + pair_cost * width)


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
