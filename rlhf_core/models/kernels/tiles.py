"""The inside of a product: some rows times four outputs, every sum in a register until it is whole.

Rows of both sides are read along their inputs, as they lie: no weight is laid out anew. Each sum is added up alike
however many rows a tile has, so a row's outputs are the same bits whatever stands beside it.
"""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rlhf_core.models.kernels.vectors import (
    FLOAT,
    LANES,
    MULTIPLIES_BFLOAT16,
    NUMBERS,
    PLACE,
    VECTOR,
    WIDE,
    WORD,
    WORDS,
    Writer,
)

MOST_ROWS: Final = 4 if WIDE else 2
"""Of a tile: sums of four outputs each, and what is multiplied, fill the registers."""
OUTPUTS: Final = 4

FLOAT32: Final = 0
"""Rows and weights in float32."""
WIDENED: Final = 1
"""Rows in float32, in pairs of vectors: the inputs of even number, then those of odd number, of as many words as a
vector has lanes. Weights in bfloat16, two to a word, made float32 in registers."""
BFLOAT16: Final = 2
"""Rows and weights in bfloat16, two inputs to a word; sums in float32."""
KINDS: Final = (FLOAT32, WIDENED, BFLOAT16)


def make_tile(outputs: int, *, fetched: int) -> Any:
    """A function (kind, rows, x, x_stride, w, w_stride, words, coming, bias, y, y_stride) that writes `rows`, at most
    MOST_ROWS, times `outputs` sums.

    Addresses and strides are in bytes; `words` are the lanes of a weight's row. `bias` is the address of as many
    numbers as outputs, y of the first output of the first row. Meanwhile memory is fetched from `coming` on, so many
    vectors for each one that is multiplied of a row, in the order in which they lie: a processor helps where it
    recognises that order.
    """

    @intrinsic
    def tile(
        _context: Any,
        kind: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        w: Any,
        w_stride: Any,
        words: Any,
        coming: Any,
        bias: Any,
        y: Any,
        y_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind, rows, x, x_stride, w, w_stride, words, coming, *where = arguments
            write = Writer(builder)

            def write_tile(kind: int, rows: int) -> None:
                made = _Tile(write, kind, (x, x_stride, rows), (w, w_stride, outputs))
                made.store(made.multiply(words, coming, fetched), *where)

            write.one_of(kind, KINDS, rows, MOST_ROWS, write_tile)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 11), generate

    return tile


@intrinsic
def split_row(_context: Any, x: Any, count: Any, to: Any) -> Any:
    """Write so many numbers, an even number of them, as WIDENED has a row: whole pairs of vectors, with zeros at the
    end. Addresses."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, count, to = arguments
        write = Writer(builder)
        lanes = range(0, 2 * LANES, 2)

        def step(at: Any, mask: Any, _carried: list[Any]) -> list[Any]:
            # As many words as there are pairs: what is beyond the first vector of a part is beyond the second's too.
            offset = builder.mul(at, ir.Constant(PLACE, 2 * WORD))
            first = builder.add(x, offset)
            left = builder.sub(count, builder.mul(at, ir.Constant(PLACE, 2)))
            beyond = builder.sub(left, ir.Constant(PLACE, LANES))
            masks = (None, None) if mask is None else (write.lanes_below(left), write.lanes_below(beyond))
            places = first, builder.add(first, ir.Constant(PLACE, VECTOR))
            one, other = (write.load(place, mask=part) for place, part in zip(places, masks, strict=True))
            even, odd = (write.shuffled(one, other, [lane + half for lane in lanes]) for half in (0, 1))
            _store_pair(write, builder.add(to, offset), even, odd)
            return []

        write.along(builder.udiv(count, ir.Constant(PLACE, 2)), [], step)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


@intrinsic
def widen_row(_context: Any, words: Any, count: Any, to: Any) -> Any:
    """Write so many words of two bfloat16 numbers each as float32, in the order of a row that `split_row` wrote."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        words, count, to = arguments
        write = Writer(builder)

        def step(at: Any, mask: Any, _carried: list[Any]) -> list[Any]:
            offset = builder.mul(at, ir.Constant(PLACE, WORD))
            numbers = write.widened(write.load(builder.add(words, offset), WORDS, mask))
            _store_pair(write, builder.add(to, builder.mul(offset, ir.Constant(PLACE, 2))), *numbers)
            return []

        write.along(count, [], step)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), generate


def _store_pair(write: Writer, place: Any, first: Any, second: Any) -> None:
    write.store(first, place)
    write.store(second, write.builder.add(place, ir.Constant(PLACE, VECTOR)))


class _Tile:
    """Writes one tile's code. A side is (address of its first row, stride, rows)."""

    def __init__(self, write: Writer, kind: int, left: tuple[Any, Any, int], right: tuple[Any, Any, int]) -> None:
        self._write, self._kind = write, kind
        self._xs, self._ws = (
            [write.place(first, stride, row) for row in range(rows)] for first, stride, rows in (left, right)
        )

    def multiply(self, words: Any, coming: Any, fetched: int) -> list[Any]:
        """The sums, each as a vector whose lanes are still to be added: of a row all outputs, then of the next."""
        write, builder = self._write, self._write.builder

        def step(at: Any, mask: Any, totals: list[Any]) -> list[Any]:
            for line in range(fetched if mask is None else 0):
                offset = builder.mul(at, ir.Constant(PLACE, WORD * fetched))
                write.fetch(builder.add(builder.add(coming, offset), ir.Constant(PLACE, line * VECTOR)))
            return self._step(at, mask, totals)

        return write.along(words, [ir.Constant(NUMBERS, None)] * (len(self._xs) * len(self._ws)), step)

    def store(self, totals: list[Any], bias: Any, y: Any, y_stride: Any) -> None:
        write, outputs = self._write, len(self._ws)
        added = write.load(bias, ir.VectorType(FLOAT, outputs))
        sums = write.lane_sums(totals)
        for row in range(len(self._xs)):
            vector, lane = divmod(row * outputs, sums[0].type.count)
            own = write.shuffled(sums[vector], sums[vector], range(lane, lane + outputs))
            write.store(write.builder.fadd(own, added), write.place(y, y_stride, row))

    def _step(self, at: Any, mask: Any, totals: list[Any]) -> list[Any]:
        """With the products of one vector of words added."""
        write, builder = self._write, self._write.builder
        offset = builder.mul(at, ir.Constant(PLACE, WORD))
        kind = NUMBERS if self._kind == FLOAT32 else WORDS
        weights = [self._parts(write.load(builder.add(each, offset), kind, mask)) for each in self._ws]
        found = []
        for row, each in enumerate(self._xs):
            inputs = self._inputs(each, offset, mask)
            for output, weight in enumerate(weights):
                total = totals[row * len(weights) + output]
                for x, w in zip(inputs, weight, strict=True):
                    add = write.add_pairs if x.type == WORDS else write.add_product
                    total = add(total, x, w)
                found.append(total)
        return found

    def _inputs(self, row: Any, offset: Any, mask: Any) -> list[Any]:
        write, builder = self._write, self._write.builder
        if self._kind != WIDENED:
            kind = WORDS if self._kind == BFLOAT16 else NUMBERS
            return self._parts(write.load(builder.add(row, offset), kind, mask))
        # Whole ones: there are zeros where there is no weight.
        even = builder.add(row, builder.mul(offset, ir.Constant(PLACE, 2)))
        return [write.load(even), write.load(builder.add(even, ir.Constant(PLACE, VECTOR)))]

    def _parts(self, vector: Any) -> list[Any]:
        """What is multiplied of a vector as it was loaded."""
        if self._kind == FLOAT32 or (self._kind == BFLOAT16 and MULTIPLIES_BFLOAT16):
            return [vector]
        return self._write.widened(vector)
