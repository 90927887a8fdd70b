"""A decoder over documents of different lengths, end to end in one row of the batch: nothing but attention is padded.

Training and scoring read many short texts at once. In rows of one length each, a fifth of what is computed is easily
padding; here every projection sees real tokens alone, but for a few rows on a CPU in half precision (`round_rows`), and
attention puts documents of similar length side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention

from rlhf_core.errors import ModelError
from rlhf_core.models.attention import ATTENTION, hidden_positions, register_attention, seen_positions
from rlhf_core.models.masked_attention import masked_attention
from rlhf_core.models.side_by_side import Group, Places, find_places, group_views, take, take_back
from rlhf_core.models.trunk import WRITTEN, run_trunk

PRODUCT_TOKENS: Final = 192
"""Length of documents up to which `masked_attention` is faster on a CPU than the fused kernel."""
PRODUCT_TOKENS_IN_HALF: Final = 384
"""The same of documents in half precision, whose gradients the fused kernel makes slowly: three times up to 100 tokens.
"""
LEAST_STEP: Final = 16
STEPS: Final = 5
"""Numbers of rows are rounded up in their first five bits: by a sixteenth at most, a few rows more for few."""


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
        return _run_rounded(trunk, token_ids, documents, wanted)
    states: Tensor = trunk(**document_inputs(trunk, token_ids, documents)).last_hidden_state[0]
    return states if wanted is None else states.index_select(0, wanted)


def round_rows(rows: int, device: torch.device) -> int:
    """How many rows to add to `rows` for products whose number of rows has come up before.

    What a CPU multiplies in half precision is compiled for its number of rows: that takes as long as the product
    itself, and stays in memory, half a megabyte of it.
    """
    if device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return 0
    return -rows % max(LEAST_STEP, 1 << max(0, rows.bit_length() - STEPS))


def _run_rounded(trunk: Any, token_ids: Tensor, documents: Documents, wanted: Tensor | None) -> Tensor:
    """The same with tokens added that nobody sees, and rows that nobody reads."""
    tokens = len(token_ids)
    if more := round_rows(tokens, token_ids.device):
        token_ids, documents = pad(token_ids, (0, more)), replace(documents, spare=documents.spare + more)
    if wanted is None:
        return run_trunk(trunk, token_ids, documents.positions, documents)[:tokens]
    rows = len(wanted)
    wanted = pad(wanted, (0, round_rows(rows, wanted.device)))
    return run_trunk(trunk, token_ids, documents.positions, documents, wanted)[:rows]


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


@dataclass(frozen=True, eq=False)
class Documents:
    """Attention within documents of these lengths, which lie one after another in the row: a `SlotAttention`.

    With `branches` [N], tokens of a document see their own branch and SHARED, and positions go on from the last shared
    one in each; without, all before them.
    """

    lengths: Sequence[int]
    device: torch.device
    branches: Tensor | None = None
    spare: int = 0
    """Tokens behind the last document: nobody sees them, and what they see means nothing."""
    _known: dict[int, Places] = field(init=False, default_factory=dict)
    _masks: dict[tuple[int, int | None, torch.dtype], Tensor] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError("documents have at least one token each")

    @cached_property
    def _groups(self) -> list[Group]:
        return group_views(self.lengths, self.branches)

    @property
    def places(self) -> int:
        """Tokens with what attention pads."""
        return sum(len(group.views) * group.width for group in self._groups)

    @property
    def positions(self) -> Tensor:
        """[N] long: what the model is told of each token's place."""
        views = [view.tokens for group in self._groups for view in group.views]
        positions = torch.zeros(sum(self.lengths) + self.spare, dtype=torch.long)
        tokens = torch.tensor(list(chain.from_iterable(views)))
        positions[tokens] = torch.tensor(list(chain.from_iterable(range(len(view)) for view in views)))
        return positions.to(self.device)

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
            shape = len(group.views), group.width
            attended = self._attend_group(
                queries[at].view(shape[0], heads, shape[1], -1),
                keys[at].view(shape[0], kv_heads, shape[1], -1),
                values[at].view(shape[0], kv_heads, shape[1], -1),
                scaling,
                window,
            )
            outputs.append(attended.reshape(-1, attended.shape[-1]))
        places = self._places(heads)
        rows = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
        return take_back(rows, places).view(1, query.shape[2], heads, -1)

    def _side_by_side(self, x: Tensor) -> tuple[Tensor, ...]:
        """x [1, H, N, D] -> for each group rows of its [views, H, width]."""
        heads = x.shape[1]
        places = self._places(heads)
        rows = x.squeeze(0).transpose(0, 1).reshape(-1, x.shape[-1])
        return take(rows, places).split([len(group.views) * heads * group.width for group in self._groups])

    def _attend_group(self, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None) -> Tensor:
        """query [n, H, L, D], key and value [n, H_kv, L, D] -> [n, H, L, D_value]."""
        heads, width, kv_heads = query.shape[1], query.shape[2], key.shape[1]
        half = query.dtype in (torch.bfloat16, torch.float16) or torch.is_autocast_enabled(query.device.type)
        if query.is_cuda or width > (PRODUCT_TOKENS_IN_HALF if half else PRODUCT_TOKENS):
            causal = window is None or window >= width
            mask = None if causal else self._hidden(width, window, query.dtype)
            if mask is not None and query.is_cuda:
                # Behind a mask, no fused kernel there shares keys among heads.
                key, value = (each.repeat_interleave(heads // kv_heads, dim=1) for each in (key, value))
            return scaled_dot_product_attention(
                query, key, value, mask, is_causal=causal, scale=scaling, enable_gqa=key.shape[1] != heads
            )
        # At least in single precision, as the fused kernel keeps its scores: no context may round the products again.
        with torch.autocast(query.device.type, enabled=False):
            exact = torch.promote_types(query.dtype, torch.float32)
            hidden = self._hidden(width, window, exact)
            attended = masked_attention(query.to(exact), key.to(exact), value.to(exact), hidden, scaling)
        return attended.to(query.dtype)

    def _places(self, heads: int) -> Places:
        if heads not in self._known:
            self._known[heads] = find_places(self._groups, heads, self.spare, self.device)
        return self._known[heads]

    def _hidden(self, width: int, window: int | None, dtype: torch.dtype) -> Tensor:
        """Added to the scores of a group, [L, L]: 0 where a row sees a column, -inf where not."""
        if (width, window, dtype) not in self._masks:
            seen = seen_positions(torch.arange(width), 0, width, window)
            self._masks[width, window, dtype] = hidden_positions(seen, dtype).to(self.device)
        return self._masks[width, window, dtype]
