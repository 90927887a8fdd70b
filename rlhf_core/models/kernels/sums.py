"""Sums along one row, as tiles add them: in an order that does not depend on where the row lies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from rlhf_core.models.kernels.vectors import INT, NUMBERS, PLACE, WORD, Writer


@intrinsic
def total(_context: Any, x: Any, count: Any) -> Any:
    """The sum of so many float32 numbers from an address on."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, count = arguments
        return _sum(builder, count, lambda write, sum, load: builder.fadd(sum, load(x)))

    return types.float32(types.intp, types.intp), generate


@intrinsic
def dot(_context: Any, x: Any, y: Any, count: Any) -> Any:
    """The sum of the products of so many float32 numbers from two addresses on."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        x, y, count = arguments
        return _sum(builder, count, lambda write, sum, load: write.add_product(sum, load(x), load(y)))

    return types.float32(types.intp, types.intp, types.intp), generate


def _sum(builder: Any, count: Any, added: Callable[[Writer, Any, Callable[[Any], Any]], Any]) -> Any:
    """`added` of (writer, sum, what loads a vector of a row) is the sum with one vector more."""
    write = Writer(builder)

    def step(at: Any, mask: Any, sums: list[Any]) -> list[Any]:
        offset = builder.mul(at, ir.Constant(PLACE, WORD))
        return [added(write, sums[0], lambda row: write.load(builder.add(row, offset), mask=mask))]

    (whole,) = write.lane_sums(write.along(count, [ir.Constant(NUMBERS, None)], step))
    return builder.extract_element(whole, ir.Constant(INT, 0))
