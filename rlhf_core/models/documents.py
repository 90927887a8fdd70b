"""A decoder over documents of different lengths, end to end in one row of the batch: nothing but attention is padded.

Training and scoring read many short texts at once. In rows of one length each, a fifth of what is computed is easily
padding; here every projection sees real tokens alone, and attention puts documents of similar length side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import scaled_dot_product_attention

from rlhf_core.errors import ModelError
from rlhf_core.models.attention import ATTENTION, hidden_positions, register_attention, seen_positions
from rlhf_core.models.masked_attention import masked_attention
from rlhf_core.models.trunk import WRITTEN, run_trunk

SHARED: Final = 0
"""Branch of the tokens that every branch of their document sees."""
SIMILAR: Final = 0.7
"""A document this much shorter than the longest of a group is put into another: its padding costs more than that."""
PRODUCT_TOKENS: Final = 192
"""Length of documents up to which `masked_attention` is faster on a CPU than the fused kernel."""


def use_documents(model: Any) -> None:
    """Let a transformers model that was made by hand take documents; one that was loaded as a policy does.

    Raises ModelError for a model whose attention cannot be replaced.
    """
    register_attention()
    if model.config._attn_implementation != ATTENTION:
        model.set_attn_implementation(ATTENTION)
    if model.config._attn_implementation != ATTENTION:
        raise ModelError(f"{type(model).__name__} does not let its attention be replaced")


def run_documents(trunk: Any, token_ids: Tensor, documents: Documents, wanted: Tensor | None = None) -> Tensor:
    """Last hidden states [K, D] of the tokens `wanted` [K] (long) among token_ids [N], the documents' tokens one after
    another; of all N for None.

    `trunk` is a transformers decoder without its head. Raises ModelError when it keeps its own attention.
    """
    if type(trunk).__name__ in WRITTEN:
        _require_told(trunk)
        return run_trunk(trunk, token_ids, documents.positions, documents, wanted)
    states: Tensor = trunk(**document_inputs(trunk, token_ids, documents)).last_hidden_state[0]
    return states if wanted is None else states.index_select(0, wanted)


def document_inputs(model: Any, token_ids: Tensor, documents: Documents) -> dict[str, Any]:
    """What a transformers model is called with, with its head or without. Raises ModelError like `run_documents`."""
    _require_told(model)
    return {
        "input_ids": token_ids[None],
        "position_ids": documents.positions[None],
        # transformers hands a mask of four dimensions through as it is, and so builds none.
        "attention_mask": torch.zeros(1, 1, 1, 1, device=token_ids.device),
        "use_cache": False,
        "slots": documents,
    }


def _require_told(model: Any) -> None:
    if model.config._attn_implementation != ATTENTION:
        raise ModelError(f"{type(model).__name__} has not been told to read documents end to end")


@dataclass(frozen=True, slots=True)
class _Group:
    """Documents side by side in attention, each padded on the right to the longest."""

    numbers: list[int]
    width: int


@dataclass(frozen=True, slots=True)
class _Places:
    """Where heads of tokens, H rows for each of N tokens, stand among the rows of all groups: [documents, H, width]."""

    taken: Tensor
    """[P] for each place the row that stands there; behind a document's end its last token again."""
    back: Tensor
    """[N * H] the place of each row."""
    blank: Tensor
    """Places behind the ends of documents."""


class _Take(torch.autograd.Function):
    """Rows [A, D] -> their rows `taken` [B, D]. The gradient of a row is that of the one place `back` it was taken to;
    what comes back for the rows `blank` is dropped."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, taken: Tensor, back: Tensor, blank: Tensor | None) -> Tensor:
        ctx.places = back, blank
        return rows.index_select(0, taken)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        back, blank = ctx.places
        given = gradient.index_select(0, back)
        if blank is not None:
            given.index_fill_(0, blank, 0.0)
        return given, None, None, None


@dataclass(frozen=True, eq=False)
class Documents:
    """Attention within documents of these lengths, which lie one after another in the row: a `SlotAttention`.

    With `branches` [N], tokens of a document see their own branch and SHARED, and positions go on from the last shared
    one in each; without, all before them.
    """

    lengths: Sequence[int]
    device: torch.device
    branches: Tensor | None = None
    _groups: list[_Group] = field(default_factory=list)
    _known: dict[int, _Places] = field(default_factory=dict)
    _masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("documents have at least one token each")
        for number in sorted(range(len(self.lengths)), key=lambda at: -self.lengths[at]):
            if not self._groups or self.lengths[number] < SIMILAR * self._groups[-1].width:
                self._groups.append(_Group([], self.lengths[number]))
            self._groups[-1].numbers.append(number)

    @property
    def places(self) -> int:
        """Tokens with what attention pads."""
        return sum(len(group.numbers) * group.width for group in self._groups)

    @property
    def positions(self) -> Tensor:
        """[N] long: what the model is told of each token's place."""
        if self.branches is None:
            return torch.cat([torch.arange(length) for length in self.lengths]).to(self.device)
        return torch.cat([_positions(part) for part in self.branches.cpu().split(list(self.lengths))]).to(self.device)

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None
    ) -> Tensor:
        """query [1, H, N, D], key and value [1, H_kv, N, D] -> [1, N, H, D_value].

        With a window, the query at position i sees positions i-window+1..i.
        """
        heads, kv_heads = query.shape[1], key.shape[1]
        queries = self._side_by_side(query)
        keys, values = self._side_by_side(key), self._side_by_side(value)
        outputs = []
        for at, group in enumerate(self._groups):
            shape = len(group.numbers), group.width
            attended = self._attend_group(
                at,
                queries[at].view(shape[0], heads, shape[1], -1),
                keys[at].view(shape[0], kv_heads, shape[1], -1),
                values[at].view(shape[0], kv_heads, shape[1], -1),
                scaling,
                window,
            )
            outputs.append(attended.reshape(-1, attended.shape[-1]))
        places = self._places(heads)
        rows = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return _Take.apply(rows, places.back, places.taken, places.blank).view(1, query.shape[2], heads, -1)

    def _side_by_side(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [1, H, N, D] -> for each group rows of its [documents, H, width]."""
        heads = x.shape[1]
        places = self._places(heads)
        rows = x.squeeze(0).transpose(0, 1).reshape(-1, x.shape[-1])
        taken: Tensor = _Take.apply(rows, places.taken, places.back, None)
        return taken.split([len(group.numbers) * heads * group.width for group in self._groups])

    def _attend_group(
        self, at: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None
    ) -> Tensor:
        """query [n, H, L, D], key and value [n, H_kv, L, D] -> [n, H, L, D_value]."""
        heads, width, kv_heads = query.shape[1], query.shape[2], key.shape[1]
        # In half precision the kernel rounds less: it keeps the scores in single.
        exact = query.dtype == torch.float32 and not torch.is_autocast_enabled(query.device.type)
        if width > PRODUCT_TOKENS or query.is_cuda or not exact:
            causal = self.branches is None and (window is None or window >= width)
            mask = None if causal else self._hidden(at, window, query.dtype)[:, None]
            if mask is not None and query.is_cuda:
                # Behind a mask, no fused kernel there shares keys among heads.
                key, value = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (key, value))
            return scaled_dot_product_attention(
                query, key, value, mask, is_causal=causal, scale=scaling, enable_gqa=key.shape[1] != heads
            )
        return masked_attention(query, key, value, self._hidden(at, window, query.dtype)[:, None], scaling)

    def _places(self, heads: int) -> _Places:
        if heads not in self._known:
            self._known[heads] = self._find_places(heads)
        return self._known[heads]

    def _find_places(self, heads: int) -> _Places:
        starts, total = [0], sum(self.lengths)
        for length in self.lengths:
            starts.append(starts[-1] + length)
        each = torch.arange(heads)
        back, taken, blank, base = torch.empty(total, heads, dtype=torch.long), [], [], 0
        for group in self._groups:
            lengths = torch.tensor([self.lengths[number] for number in group.numbers])
            first = torch.tensor([starts[number] for number in group.numbers])
            columns = torch.arange(group.width)
            tokens = first[:, None] + torch.minimum(columns, lengths[:, None] - 1)
            taken.append((tokens[:, None] * heads + each[:, None]).flatten())
            places = base + torch.arange(len(taken[-1])).view(len(group.numbers), heads, group.width)
            real = columns < lengths[:, None]
            back[tokens[real]] = places.transpose(1, 2)[real]
            blank.append(places.transpose(1, 2)[~real].flatten())
            base += len(taken[-1])
        return _Places(*(each.to(self.device) for each in (torch.cat(taken), back.flatten(), torch.cat(blank))))

    def _hidden(self, at: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Added to the scores of a group, [1 or n, L, L]: 0 where a row sees a column, -inf where not."""
        if (at, window, dtype) not in self._masks:
            group = self._groups[at]
            seen = seen_positions(torch.arange(group.width), 0, group.width, window)[None]
            if self.branches is not None:
                parts = self.branches.cpu().split(list(self.lengths))
                own = torch.nn.utils.rnn.pad_sequence([parts[number] for number in group.numbers], batch_first=True)
                seen = seen & ((own[:, None] == SHARED) | (own[:, None] == own[:, :, None]))
                # What stands behind the end sees at least itself: no row of the softmax is empty.
                seen = seen | torch.eye(group.width, dtype=torch.bool)
            self._masks[at, window, dtype] = hidden_positions(seen, dtype).to(self.device)
        return self._masks[at, window, dtype]


def _positions(branches: Tensor) -> Tensor:
    """Of one document's tokens [L]: each branch goes on where the shared tokens end."""
    shared = int((branches == SHARED).sum())
    positions = torch.arange(len(branches))
    for branch in branches.unique().tolist():
        if branch != SHARED:
            own = branches == branch
            positions[own] = shared + torch.arange(int(own.sum()))
    return positions
