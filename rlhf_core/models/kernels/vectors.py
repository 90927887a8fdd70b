"""What the innermost loops are written in: vectors as wide as this processor's.

Loops that are left to the compiler use half of that width, and none of what it multiplies bfloat16 with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import numba
from llvmlite import ir
from numba.core.codegen import get_host_cpu_features


def has_feature(name: str) -> bool:
    """Whether the processor that is compiled for has it; numba may have been told of another than this one."""
    told: str | None = numba.config.CPU_FEATURES
    return f"+{name}" in (get_host_cpu_features() if told is None else told).split(",")


WIDE: Final = has_feature("avx512f")
LANES: Final = 16 if WIDE else 8
"""Numbers of a vector; two vectors of a processor that has shorter ones."""
WORD: Final = 4
"""Bytes of a lane."""
VECTOR: Final = WORD * LANES
"""Bytes of one."""
HALF: Final = 2
"""Bytes of a bfloat16 number."""
MULTIPLIES_BFLOAT16: Final = has_feature("avx512bf16")

FLOAT: Final = ir.FloatType()
INT: Final = ir.IntType(32)
PLACE: Final = ir.IntType(64)
NUMBERS: Final = ir.VectorType(FLOAT, LANES)
WORDS: Final = ir.VectorType(INT, LANES)
_POINTER: Final = ir.PointerType()
_FLAGS: Final = ("contract", "nsz")


class _BFloat(ir.types.Type):
    """The compiler's bfloat16, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BFloat)

    def __hash__(self) -> int:
        return hash(_BFloat)


_PAIRS: Final = ir.VectorType(_BFloat(), 2 * LANES)


class Writer:
    """Writes code about vectors. Addresses, strides and counts are 64-bit numbers; `mask` says which lanes there are,
    None for all."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def place(self, base: Any, stride: Any, index: int) -> Any:
        """The address of the part of this index; `stride` in bytes."""
        return self.builder.add(base, self.builder.mul(stride, ir.Constant(PLACE, index)))

    def load(self, address: Any, kind: Any = NUMBERS, mask: Any = None) -> Any:
        """A vector, zeros in the lanes that there are not."""
        if mask is None:
            return self.builder.load(self.builder.inttoptr(address, kind.as_pointer()), align=HALF)
        arguments = [self._pointer(address), ir.Constant(INT, HALF), mask, ir.Constant(kind, None)]
        return self._masked("load", kind, kind, arguments)

    def store(self, vector: Any, address: Any, mask: Any = None) -> None:
        if mask is None:
            place = self.builder.inttoptr(address, vector.type.as_pointer())
            self.builder.store(vector, place, align=WORD)
            return
        arguments = [vector, self._pointer(address), ir.Constant(INT, WORD), mask]
        self._masked("store", ir.VoidType(), vector.type, arguments)

    def everywhere(self, number: Any) -> Any:
        """A vector of one number, float32 or int32, in every lane."""
        kind = ir.VectorType(number.type, LANES)
        nothing = ir.Constant(kind, ir.Undefined)
        one = self.builder.insert_element(nothing, number, ir.Constant(INT, 0))
        return self.builder.shuffle_vector(one, nothing, ir.Constant(WORDS, [0] * LANES))

    def lanes_below(self, count: Any) -> Any:
        """The mask of the first lanes, so many of them."""
        numbers = ir.Constant(WORDS, list(range(LANES)))
        return self.builder.icmp_signed("<", numbers, self.everywhere(self.builder.trunc(count, INT)))

    def add_product(self, total: Any, one: Any, other: Any) -> Any:
        function = self._function(f"llvm.fmuladd.v{LANES}f32", NUMBERS, [NUMBERS] * 3)
        return self.builder.call(function, [one, other, total], fastmath=_FLAGS)

    def add_pairs(self, total: Any, one: Any, other: Any) -> Any:
        """The products of the two bfloat16 numbers of each word, added in float32."""
        function = self._function("llvm.x86.avx512bf16.dpbf16ps.512", NUMBERS, [NUMBERS, _PAIRS, _PAIRS])
        return self.builder.call(function, [total, *(self.builder.bitcast(each, _PAIRS) for each in (one, other))])

    def widened(self, words: Any) -> list[Any]:
        """The first and the second bfloat16 number of each word, as float32."""
        first = self.builder.shl(words, ir.Constant(WORDS, [16] * LANES))
        second = self.builder.and_(words, ir.Constant(WORDS, [-65536] * LANES))
        return [self.builder.bitcast(each, NUMBERS) for each in (first, second)]

    def load_bfloat16(self, address: Any, mask: Any = None) -> Any:
        """A vector of numbers that lie one beside another in bfloat16, as float32."""
        narrow = self.load(address, ir.VectorType(ir.IntType(16), LANES), mask)
        upper = self.builder.shl(self.builder.zext(narrow, WORDS), ir.Constant(WORDS, [16] * LANES))
        return self.builder.bitcast(upper, NUMBERS)

    def fetch(self, address: Any) -> None:
        """Have the processor fetch what lies there, and go on."""
        function = self._function("llvm.prefetch.p0", ir.VoidType(), [_POINTER, INT, INT, INT])
        self.builder.call(function, [self._pointer(address), *(ir.Constant(INT, value) for value in (0, 3, 1))])

    def shuffled(self, one: Any, other: Any, lanes: Sequence[int]) -> Any:
        """These lanes of both, those of `other` numbered after those of `one`."""
        return self.builder.shuffle_vector(one, other, ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes)))

    def loop(
        self, start: Any, end: Any, step: int, carried: Sequence[Any], body: Callable[[Any, list[Any]], list[Any]]
    ) -> list[Any]:
        """`body` of (index, carried) gives what is carried on, for each index from `start`, below `end`."""
        builder = self.builder
        before, inside, after = builder.block, builder.append_basic_block("loop"), builder.append_basic_block("looped")
        builder.cbranch(builder.icmp_signed("<", start, end), inside, after)
        builder.position_at_end(inside)
        index, now = builder.phi(start.type), [builder.phi(each.type) for each in carried]
        then = body(index, now)
        following, last = builder.add(index, ir.Constant(start.type, step)), builder.block
        for phi, first, other in ((index, start, following), *zip(now, carried, then, strict=True)):
            phi.add_incoming(first, before)
            phi.add_incoming(other, last)
        builder.cbranch(builder.icmp_signed("<", following, end), inside, after)
        builder.position_at_end(after)
        return [self._joined((first, before), (other, last)) for first, other in zip(carried, then, strict=True)]

    def when(self, condition: Any, carried: Sequence[Any], body: Callable[[list[Any]], list[Any]]) -> list[Any]:
        """What `body` makes of what is carried where the condition holds, else that itself."""
        builder = self.builder
        before, inside, after = builder.block, builder.append_basic_block("when"), builder.append_basic_block("went")
        builder.cbranch(condition, inside, after)
        builder.position_at_end(inside)
        then = body(list(carried))
        last = builder.block
        builder.branch(after)
        builder.position_at_end(after)
        return [self._joined((first, before), (other, last)) for first, other in zip(carried, then, strict=True)]

    def along(self, count: Any, carried: Sequence[Any], body: Callable[[Any, Any, list[Any]], list[Any]]) -> list[Any]:
        """`body` of (index, mask, carried) for each vector of `count` lanes, of which the last may be there in part."""
        builder = self.builder
        whole = builder.sub(count, builder.urem(count, ir.Constant(PLACE, LANES)))
        carried = self.loop(ir.Constant(PLACE, 0), whole, LANES, carried, lambda at, now: body(at, None, now))

        def rest(now: list[Any]) -> list[Any]:
            return body(whole, self.lanes_below(builder.sub(count, whole)), now)

        return self.when(builder.icmp_signed("<", whole, count), carried, rest)

    def lane_sums(self, vectors: Sequence[Any]) -> list[Any]:
        """The sum of each vector's lanes, in order, as the lanes of as few vectors as hold them.

        Halves of lanes are added, then halves of those, and so on: always the same lanes, whoever shares the vector.
        """
        group = LANES
        # As many as there are pairs of pairs for: what is added of nothing is left out by the compiler.
        spare = (1 << (len(vectors) - 1).bit_length()) - len(vectors)
        vectors = [*vectors, *[ir.Constant(NUMBERS, None)] * spare]
        while group > 1:
            vectors = [self._halved(vectors[at : at + 2], group) for at in range(0, len(vectors), 2)]
            group //= 2
        return vectors

    def _halved(self, couple: Sequence[Any], group: int) -> Any:
        """Of each group of lanes one half added to the other, of two vectors or of one."""
        one, other = couple[0], couple[-1]
        starts = range(0, len(couple) * one.type.count, group)
        low = [start + lane for start in starts for lane in range(group // 2)]
        high = [lane + group // 2 for lane in low]
        return self.builder.fadd(*(self.shuffled(one, other, lanes) for lanes in (low, high)))

    def one_of(
        self, kind: Any, kinds: Sequence[int], rows: Any, most_rows: int, body: Callable[[int, int], None]
    ) -> None:
        """`body` of (kind, rows), which are one of these kinds and 1 to `most_rows`."""

        def of_kind(kind: int) -> None:
            self._choose(rows, range(1, most_rows + 1), partial(body, kind))

        self._choose(kind, kinds, of_kind)

    def _choose(self, number: Any, numbers: Sequence[int], body: Callable[[int], None]) -> None:
        builder = self.builder
        done = builder.append_basic_block("chosen")
        blocks = [builder.append_basic_block(f"choice{each}") for each in numbers]
        choice = builder.switch(number, blocks[0])
        for each, block in zip(numbers, blocks, strict=True):
            choice.add_case(ir.Constant(number.type, each), block)
            builder.position_at_end(block)
            body(each)
            builder.branch(done)
        builder.position_at_end(done)

    def _joined(self, *incoming: tuple[Any, Any]) -> Any:
        phi = self.builder.phi(incoming[0][0].type)
        for value, block in incoming:
            phi.add_incoming(value, block)
        return phi

    def _masked(self, name: str, result: Any, kind: Any, arguments: Sequence[Any]) -> Any:
        element = "f32" if kind.element == FLOAT else f"i{kind.element.width}"
        full = f"llvm.masked.{name}.v{LANES}{element}.p0"
        function = self._function(full, result, [argument.type for argument in arguments])
        return self.builder.call(function, arguments)

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, _POINTER)

    def _function(self, name: str, result: Any, arguments: Sequence[Any]) -> Any:
        module = self.builder.module
        return module.globals.get(name) or ir.Function(module, ir.FunctionType(result, arguments), name)
