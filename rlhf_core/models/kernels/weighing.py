"""Sums of rows, each with a weight: what attention makes of values, and an adapter of what it narrowed, by tiles."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rlhf_core.models.kernels.compiling import compiled
from rlhf_core.models.kernels.tiles import BFLOAT16, FLOAT32
from rlhf_core.models.kernels.vectors import FLOAT, HALF, LANES, PLACE, VECTOR, WIDE, WORD, Writer

_VECTORS: Final = 4
"""Of a tile; four rows of them are as many sums as there are registers for."""
_ROWS: Final = 4 if WIDE else 2
COLUMNS: Final = LANES * _VECTORS
"""Of a tile."""


class _Tile:
    """Writes one tile's code: of so many vectors of each row of y, or of the first lanes of one, as a mask says."""

    def __init__(self, write: Writer, kind: int, vectors: int, mask: Any) -> None:
        self._write, self._kind, self._vectors, self._mask = write, kind, vectors, mask

    def add(self, shares: list[Any], values: Any, values_stride: Any, count: Any, y: list[Any]) -> None:
        """To rows at the addresses `y`: `count` values, weighed by the numbers from the addresses `shares` on."""
        write, builder = self._write, self._write.builder

        def step(at: Any, totals: list[Any]) -> list[Any]:
            loaded = self._load(builder.add(values, builder.mul(at, values_stride)))
            offset = builder.mul(at, ir.Constant(PLACE, WORD))
            weights = [self._share(builder.add(own, offset)) for own in shares]
            each = [(weight, value) for weight in weights for value in loaded]
            return [write.add_product(total, *pair) for total, pair in zip(totals, each, strict=True)]

        places = [self._part(row, vector, VECTOR) for row in y for vector in range(self._vectors)]
        before = [write.load(place, mask=self._mask) for place in places]
        totals = write.loop(ir.Constant(PLACE, 0), count, 1, before, step)
        for place, total in zip(places, totals, strict=True):
            write.store(total, place, self._mask)

    def _load(self, value: Any) -> list[Any]:
        """The vectors of one value."""
        parts = range(self._vectors)
        if self._kind == BFLOAT16:
            return [self._write.load_bfloat16(self._part(value, part, VECTOR // 2), self._mask) for part in parts]
        return [self._write.load(self._part(value, part, VECTOR), mask=self._mask) for part in parts]

    def _share(self, place: Any) -> Any:
        builder = self._write.builder
        return self._write.everywhere(builder.load(builder.inttoptr(place, FLOAT.as_pointer()), align=WORD))

    def _part(self, place: Any, part: int, size: int) -> Any:
        return self._write.builder.add(place, ir.Constant(PLACE, part * size))


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

            def write_tile(kind: int, rows: int) -> None:
                own, to = (
                    [write.place(first, stride, row) for row in range(rows)]
                    for first, stride in ((shares, shares_stride), (y, y_stride))
                )
                _Tile(write, kind, vectors, mask).add(own, values, values_stride, count, to)

            write.one_of(kind, (FLOAT32, BFLOAT16), rows, _ROWS, write_tile)
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
