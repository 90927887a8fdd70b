"""Documents end to end in one batch: no document is padded, and attention never crosses from one into another.

Positions restart at each document, so every token's logprob equals the one it has alone. Documents are opaque here;
only their tokens and which of them count matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from rlhf_core.errors import TrainingError
from rlhf_core.models.documents import Documents


class Document(Protocol):
    """Anything with token ids and, for each of them, whether it is a target."""

    @property
    def token_ids(self) -> Sequence[int]:
        """The whole document, end token included."""

    @property
    def response_mask(self) -> Sequence[bool]:
        """True where the token counts; as long as `token_ids`."""


Doc = TypeVar("Doc", bound=Document)


class PackedBatch(NamedTuple):
    """N tokens of documents, one document after another, and the token that follows each.

    The last token of a document is not read: it is only predicted.
    """

    token_ids: Tensor
    """[N] long."""
    targets: Tensor
    """[N] long."""
    response_mask: Tensor
    """[N] bool, True where the target counts."""
    documents: Documents

    @classmethod
    def of(cls, documents: Sequence[Document], device: torch.device) -> PackedBatch:
        """Raises ValueError for a document of fewer than two tokens."""
        token_ids = [token_id for each in documents for token_id in each.token_ids[:-1]]
        targets = [token_id for each in documents for token_id in each.token_ids[1:]]
        response_mask = [counts for each in documents for counts in each.response_mask[1:]]
        return cls(
            torch.tensor(token_ids, device=device),
            torch.tensor(targets, device=device),
            torch.tensor(response_mask, device=device),
            Documents([len(each.token_ids) - 1 for each in documents], device),
        )

    def weights(self, prompt_weight: float) -> Tensor:
        """Loss weight [N] of each target: 1 in a response, `prompt_weight` in a prompt."""
        return torch.where(self.response_mask, 1.0, prompt_weight)


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


def cut(documents: Sequence[Doc], batch_tokens: int) -> list[list[Doc]]:
    """Batches of at most `batch_tokens`, or of one document. They come in the order given."""
    batches: list[list[Doc]] = []
    tokens = 0
    for document in documents:
        tokens += len(document.token_ids)
        if not batches or tokens > batch_tokens:
            batches.append([])
            tokens = len(document.token_ids)
        batches[-1].append(document)
    return batches
