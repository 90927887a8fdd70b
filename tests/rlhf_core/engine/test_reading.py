"""Attention over slots against attention written out for one sequence at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from rlhf_core.engine.cache import SlotCache
from rlhf_core.engine.reading import CALL_POSITIONS, SlotSpan, SlotStep, runs
from rlhf_core.models.attention import Rotation
from rlhf_core.models.fused import rotated
from rlhf_core.models.kernels.crew import muster

CONTEXT = 300


def test_rows_of_similar_length_are_read_together() -> None:
    assert runs([(0, 100), (0, 110), (0, 90)]) == [(0, 3, 0, 110)]
    assert runs([]) == []


def test_a_row_far_longer_or_shorter_than_its_neighbours_is_read_alone() -> None:
    # Together the short ones would read 900 positions each in vain.
    assert runs([(0, 100), (0, 1000), (0, 100), (0, 101)]) == [(0, 1, 0, 100), (1, 2, 0, 1000), (2, 4, 0, 101)]


def test_windows_far_apart_are_read_apart() -> None:
    assert runs([(0, 16), (4, 20), (484, 500)]) == [(0, 2, 0, 20), (2, 3, 484, 500)]


def test_a_split_costs_more_than_a_call_or_is_not_made() -> None:
    # Joining makes one row read the difference in vain: it pays up to the price of a call.
    assert len(runs([(0, 10), (0, 10 + CALL_POSITIONS)])) == 1
    assert len(runs([(0, 10), (0, 11 + CALL_POSITIONS)])) == 2


def written_out(
    query: Tensor, keys: Tensor, values: Tensor, position: int, window: int | None, scaling: float
) -> Tensor:
    """query [H, D], keys and values [H_kv, T, D] -> [H, D_value] for the token at `position`."""
    start = 0 if window is None else max(0, position - window + 1)
    group = query.shape[0] // keys.shape[0]
    rows = []
    for head in range(query.shape[0]):
        seen = keys[head // group, start : position + 1]
        weights = (seen @ query[head] * scaling).softmax(dim=0)
        rows.append(weights @ values[head // group, start : position + 1])
    return torch.stack(rows)


@pytest.mark.parametrize("value_size", [8, 12])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 16, 1, CONTEXT])
def test_a_step_computes_the_attention_of_every_row_alone(
    window: int | None, heads: int, kv_heads: int, value_size: int
) -> None:
    torch.manual_seed(heads)
    # Four decoding sequences, one far longer; slot 4 goes on with its prompt after 40 tokens, slot 5 begins one.
    lengths, prompts = (30, 31, 250, 30), ((4, 40, 25), (5, 0, 20))
    ends = (*lengths, 65, 20)
    keys = [torch.randn(kv_heads, end, 8) for end in ends]
    values = [torch.randn(kv_heads, end, value_size) for end in ends]
    cache = SlotCache(6, CONTEXT)
    for slot, start in itertools.zip_longest(range(6), (29, 30, 249, 29, 40, 0)):
        cache.copy_in(slot, {0: (keys[slot], values[slot])}, start)
    rows = [(slot, length - 1) for slot, length in enumerate(lengths)]
    spans, row = [], len(rows)
    for slot, start, length in prompts:
        spans.append(SlotSpan(slot, row, start, length))
        rows += [(slot, position) for position in range(start, start + length)]
        row += length
    slots, positions = torch.tensor(rows).T
    step = SlotStep(cache, slots, positions, lengths, tuple(spans))
    query = torch.randn(1, heads, len(rows), 8)
    key = torch.stack([keys[slot][:, position] for slot, position in rows], dim=1)[None]
    value = torch.stack([values[slot][:, position] for slot, position in rows], dim=1)[None]
    with torch.inference_mode():
        attended = step.attend(0, query, key, value, 0.3, window)
    assert attended.shape == (1, len(rows), heads, value_size)
    for number, (slot, position) in enumerate(rows):
        expected = written_out(query[0, :, number], keys[slot], values[slot], position, window, 0.3)
        assert attended[0, number].numpy() == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 16, 1, CONTEXT])
def test_what_leaves_one_product_is_attended_to_as_queries_keys_and_values_apart(
    window: int | None, heads: int, kv_heads: int, rotary: bool
) -> None:
    torch.manual_seed(heads)
    # Slots 0..2 decode after 29, 249 and 0 tokens; slot 4 goes on with its prompt after 40 tokens, slot 3 begins one.
    before, lengths = (29, 249, 0, 0, 40), (30, 250, 1)
    spans = (SlotSpan(4, 3, 40, 25), SlotSpan(3, 28, 0, 20))
    rows = [(slot, length - 1) for slot, length in enumerate(lengths)]
    rows += [(span.slot, span.start + i) for span in spans for i in range(span.length)]
    slots, positions = (torch.tensor(column) for column in zip(*rows, strict=True))
    caches = SlotCache(5, CONTEXT), SlotCache(5, CONTEXT)
    for slot, length in enumerate(before):
        held = torch.randn(kv_heads, length, 8), torch.randn(kv_heads, length, 8)
        for cache in caches:
            cache.copy_in(slot, {0: held}, length)
    one, other = (SlotStep(cache, slots, positions, lengths, spans) for cache in caches)
    qkv, angles = torch.randn(len(rows), heads + 2 * kv_heads, 8), torch.randn(CONTEXT, 4)
    cos, sin = angles.cos().tile(2), torch.cat([-angles.sin(), angles.sin()], dim=1)
    apart = qkv.clone()
    if rotary:
        apart[:, :-kv_heads] = rotated(qkv[:, :-kv_heads], cos[positions][:, None], sin[positions][:, None])
    parts = apart.transpose(0, 1)[None].split([heads, kv_heads, kv_heads], dim=1)
    rotation = Rotation(cos.numpy(), sin.numpy()) if rotary else None
    with torch.inference_mode():
        expected = one.attend(0, *parts, 0.3, window)
        attended = other.attend_joined(
            0, qkv.numpy(), heads, np.float32(0.3), rotation=rotation, window=window, kept=torch.float32, crew=muster()
        )
    assert attended == pytest.approx(expected[0].numpy(), abs=1e-5)
    for slot, length in enumerate((*lengths, 20, 65)):
        theirs, ours = (cache.copy_out(slot, length)[0] for cache in caches)
        assert ours[0].numpy() == pytest.approx(theirs[0].numpy(), abs=1e-6)
        assert torch.equal(ours[1], theirs[1])


def test_a_saved_prefix_comes_back_bit_for_bit_and_outlives_its_slot() -> None:
    cache = SlotCache(3, 10)
    keys, values = torch.randn(2, 7, 4), torch.randn(2, 7, 6)
    cache.copy_in(1, {0: (keys, values), 5: (keys + 1, values + 1)}, 7)
    saved = cache.copy_out(1, 5)
    cache.copy_in(1, {0: (keys * 0, values * 0)}, 7)
    cache.copy_in(2, saved, 4)
    again = cache.copy_out(2, 6)
    assert torch.equal(again[0][0][:, :4], keys[:, :4])
    assert torch.equal(again[5][1][:, :4], values[:, :4] + 1)
    assert not again[0][0][:, 4:].any()
    fresh = SlotCache(1, 10)
    fresh.copy_in(0, saved, 5)
    assert torch.equal(fresh.copy_out(0, 5)[5][0], keys[:, :5] + 1)


def test_a_slot_moves_whole_and_a_cleared_cache_is_empty() -> None:
    cache = SlotCache(3, 10)
    keys, values = torch.randn(2, 7, 4), torch.randn(2, 7, 6)
    cache.copy_in(0, {0: (keys, values)}, 7)
    cache.move(0, 2, 7)
    assert torch.equal(cache.copy_out(2, 7)[0][1], values)
    # 3 slots x 2 heads x 10 positions x (4 + 6) numbers x 4 bytes.
    assert cache.bytes == 2400
    cache.clear()
    assert cache.bytes == 0
