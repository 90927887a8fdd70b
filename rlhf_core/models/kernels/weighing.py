"""Sums of rows, each with a weight: what attention makes of values, and an adapter of what it narrowed, by tiles."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rlhf_core.models.kernels.compiling import compiled
from rlhf_core.models.kernels.tiles import BFLOAT16, FLOAT32
from rlhf_core.models.kernels.vectors import FLOAT, HALF, LANES, PLACE, WIDE, WORD, Writer

_VECTORS: Final = 4
"""Of a tile; four rows of them are as many sums as there are registers for."""
_ROWS: Final = 4 if WIDE else 2
COLUMNS: Final = LANES * _VECTORS
"""Of a tile."""


def _make_tile(vectors: int, *, part: bool) -> Any:
    """A function (kind, rows, shares, shares_stride, values, values_stride, count, size, y, y_stride): to y[row] is
    added the sum over `count` values of shares[row, value] times that value, of which it takes so many vectors; with
    `part` one vector, of which there are the first `size` lanes. Addresses and strides are in bytes."""

    @intrinsic
    def tile(
        _context: Any,
        kind: Any,
        rows: Any,
        shares: Any,
        shares_stride: Any,
        values: Any,
        values_stride: Any,
        count: Any,
        size: Any,
        y: Any,
        y_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind, rows, shares, shares_stride, values, values_stride, count, size, y, y_stride = arguments
            write = Writer(builder)
            mask = write.lanes_below(size) if part else None

            def load(kind: int, begin: Any, vector: int) -> Any:
                size = HALF if kind == BFLOAT16 else WORD
                place = builder.add(begin, ir.Constant(PLACE, vector * LANES * size))
                return write.load_bfloat16(place, mask) if kind == BFLOAT16 else write.load(place, mask=mask)

            def add(kind: int, rows: int, at: Any, totals: list[Any]) -> list[Any]:
                begin = builder.add(values, builder.mul(at, values_stride))
                loaded = [load(kind, begin, vector) for vector in range(vectors)]
                found = []
                for row in range(rows):
                    own = builder.add(
                        write.place(shares, shares_stride, row), builder.mul(at, ir.Constant(PLACE, WORD))
                    )
                    share = write.everywhere(builder.load(builder.inttoptr(own, FLOAT.as_pointer()), align=WORD))
                    for vector, value in enumerate(loaded):
                        found.append(write.add_product(totals[row * vectors + vector], share, value))
                return found

            def weigh_rows(kind: int, rows: int) -> None:
                places = [
                    builder.add(write.place(y, y_stride, row), ir.Constant(PLACE, vector * LANES * WORD))
                    for row in range(rows)
                    for vector in range(vectors)
                ]
                before = [write.load(place, mask=mask) for place in places]
                totals = write.loop(ir.Constant(PLACE, 0), count, 1, before, partial(add, kind, rows))
                for place, total in zip(places, totals, strict=True):
                    write.store(total, place, mask)

            def of_kind(kind: int) -> None:
                write.one_of(rows, {each: partial(weigh_rows, kind, each) for each in range(1, _ROWS + 1)})

            write.one_of(kind, {each: partial(of_kind, each) for each in (FLOAT32, BFLOAT16)})
            return context.get_dummy_value()

        return types.void(*[types.intp] * 10), generate

    return tile


_of_vectors = _make_tile(_VECTORS, part=False)
_of_part = _make_tile(1, part=True)


@compiled
def weigh(
    kind: int,
    shares: int,
    shares_stride: int,
    values: int,
    values_stride: int,
    count: int,
    rows: int,
    size: int,
    y: int,
    y_stride: int,
) -> None:
    """y [rows, D] += shares [rows, count] @ values [count, D], the values in float32 or in bfloat16, as the kind says.
    Places are addresses, strides in bytes; `size` is D."""
    wide, each = COLUMNS, HALF if kind == BFLOAT16 else WORD
    for row in range(0, rows, _ROWS):
        together, at = min(_ROWS, rows - row), 0
        own, to = shares + row * shares_stride, y + row * y_stride
        while size - at >= wide:
            part = values + at * each
            _of_vectors(kind, together, own, shares_stride, part, values_stride, count, 0, to + at * WORD, y_stride)
            at += wide
        while at < size:
            part, lanes = values + at * each, min(LANES, size - at)
            _of_part(kind, together, own, shares_stride, part, values_stride, count, lanes, to + at * WORD, y_stride)
            at += LANES
