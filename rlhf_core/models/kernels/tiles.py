"""The inside of a product: some rows times four outputs, every sum in a register until it is whole.

Rows of both sides are read along their inputs, as they lie: no weight is laid out anew. Each sum is added up alike
however many rows a tile has, so a row's outputs are the same bits whatever stands beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
"""Rows in float32, their inputs of even number before those of odd number; weights in bfloat16, two to a word, made
float32 in registers."""
BFLOAT16: Final = 2
"""Rows and weights in bfloat16, two inputs to a word; sums in float32."""
KINDS: Final = (FLOAT32, WIDENED, BFLOAT16)


def make_tile(outputs: int, *, fetched: int) -> Any:
    """A function (kind, rows, x, x_stride, odd, w, w_stride, words, coming, bias, y, y_stride) that writes `rows`, at
    most MOST_ROWS, times `outputs` sums.

    Addresses and strides are in bytes. `odd` is what lies between a row's inputs of even and of odd number where they
    are split; `words` the lanes of a row that are multiplied. `bias` is the address of as many numbers as outputs, y of
    the first output of the first row. Meanwhile memory is fetched from `coming` on, so many vectors for each one that
    is multiplied of a row, in the order in which they lie: a processor helps where it recognises that order.
    """

    @intrinsic
    def tile(
        _context: Any,
        kind: Any,
        rows: Any,
        x: Any,
        x_stride: Any,
        odd: Any,
        w: Any,
        w_stride: Any,
        words: Any,
        coming: Any,
        bias: Any,
        y: Any,
        y_stride: Any,
    ) -> Any:
        def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
            kind, rows, x, x_stride, odd, w, w_stride, words, coming, *where = arguments
            write = Writer(builder)

            def write_tile(kind: int, rows: int) -> None:
                made = _Tile(write, kind, (x, x_stride, rows), odd, (w, w_stride, outputs))
                made.store(made.multiply(words, coming, fetched), *where)

            def of_kind(kind: int) -> None:
                write.one_of(rows, {each: partial(write_tile, kind, each) for each in range(1, MOST_ROWS + 1)})

            write.one_of(kind, {each: partial(of_kind, each) for each in KINDS})
            return context.get_dummy_value()

        return types.void(*[types.intp] * 12), generate

    return tile


@intrinsic
def dot(_context: Any, x: Any, y: Any, words: Any) -> Any:
    """The sum of the products of so many float32 numbers at two addresses, added up as a tile's are."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, y, words = arguments
        nothing = ir.Constant(PLACE, 0)
        made = _Tile(Writer(builder), FLOAT32, (x, nothing, 1), nothing, (y, nothing, 1))
        (total,) = made.sums(made.multiply(words, nothing, 0))
        return builder.extract_element(total, ir.Constant(PLACE, 0))

    return types.float32(types.intp, types.intp, types.intp), generate


class _Tile:
    """Writes one tile's code. A side is (address of its first row, stride, rows)."""

    def __init__(
        self, write: Writer, kind: int, left: tuple[Any, Any, int], odd: Any, right: tuple[Any, Any, int]
    ) -> None:
        self._write = write
        self._kind, self._odd = kind, odd
        self._xs = [self._write.place(left[0], left[1], row) for row in range(left[2])]
        self._ws = [self._write.place(right[0], right[1], output) for output in range(right[2])]

    def multiply(self, words: Any, coming: Any, fetched: int) -> list[Any]:
        """The sums, each as a vector whose lanes are still to be added: of a row all outputs, then of the next."""
        write, builder = self._write, self._write.builder
        whole = builder.sub(words, builder.urem(words, ir.Constant(PLACE, LANES)))

        def step(at: Any, totals: list[Any]) -> list[Any]:
            for line in range(fetched):
                offset = builder.mul(at, ir.Constant(PLACE, WORD * fetched))
                write.fetch(builder.add(builder.add(coming, offset), ir.Constant(PLACE, line * LANES * WORD)))
            return self._step(at, totals, None)

        def rest(totals: list[Any]) -> list[Any]:
            return self._step(whole, totals, write.lanes_below(builder.sub(words, whole)))

        totals: list[Any] = [ir.Constant(NUMBERS, None)] * (len(self._xs) * len(self._ws))
        totals = write.loop(ir.Constant(PLACE, 0), whole, LANES, totals, step)
        return write.when(builder.icmp_signed("<", whole, words), totals, rest)

    def store(self, totals: list[Any], bias: Any, y: Any, y_stride: Any) -> None:
        write, outputs = self._write, len(self._ws)
        added = write.load(bias, ir.VectorType(FLOAT, outputs))
        sums = self.sums(totals)
        for row in range(len(self._xs)):
            vector, lane = divmod(row * outputs, sums[0].type.count)
            own = write.shuffled(sums[vector], sums[vector], range(lane, lane + outputs))
            write.store(write.add(own, added), write.place(y, y_stride, row))

    def _step(self, at: Any, totals: Sequence[Any], mask: Any) -> list[Any]:
        """With the products of one vector of inputs added."""
        write, builder = self._write, self._write.builder
        offset = builder.mul(at, ir.Constant(PLACE, WORD))
        kind = NUMBERS if self._kind == FLOAT32 else WORDS
        weights = [self._parts(write.load(builder.add(each, offset), kind, mask)) for each in self._ws]
        found = []
        for row, each in enumerate(self._xs):
            inputs = self._inputs(builder.add(each, offset), mask)
            for output, weight in enumerate(weights):
                total = totals[row * len(weights) + output]
                for x, w in zip(inputs, weight, strict=True):
                    add = write.add_pairs if x.type == WORDS else write.add_product
                    total = add(total, x, w)
                found.append(total)
        return found

    def _inputs(self, place: Any, mask: Any) -> list[Any]:
        if self._kind == BFLOAT16:
            return self._parts(self._write.load(place, WORDS, mask))
        inputs = [self._write.load(place, NUMBERS, mask)]
        if self._kind == WIDENED:
            inputs.append(self._write.load(self._write.builder.add(place, self._odd), NUMBERS, mask))
        return inputs

    def _parts(self, vector: Any) -> list[Any]:
        """What is multiplied of a vector as it was loaded."""
        if self._kind == FLOAT32 or (self._kind == BFLOAT16 and MULTIPLIES_BFLOAT16):
            return [vector]
        return self._write.widened(vector)

    def sums(self, vectors: list[Any]) -> list[Any]:
        """The sum of each vector's lanes, in order, as the lanes of as few vectors as hold them.

        Halves of lanes are added, then halves of those, and so on: always the same lanes, whoever shares the vector.
        """
        group = LANES
        # As many as there are pairs of pairs for: what is added of nothing is left out by the compiler.
        vectors = vectors + [ir.Constant(NUMBERS, None)] * ((1 << (len(vectors) - 1).bit_length()) - len(vectors))
        while group > 1:
            vectors = [self._halved(vectors[at : at + 2], group) for at in range(0, len(vectors), 2)]
            group //= 2
        return vectors

    def _halved(self, couple: list[Any], group: int) -> Any:
        """Of each group of lanes one half added to the other, of two vectors or of one."""
        one, other = couple[0], couple[-1]
        starts = range(0, len(couple) * one.type.count, group)
        low = [start + lane for start in starts for lane in range(group // 2)]
        high = [lane + group // 2 for lane in low]
        return self._write.add(*(self._write.shuffled(one, other, lanes) for lanes in (low, high)))
