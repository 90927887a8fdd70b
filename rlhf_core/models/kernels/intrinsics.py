"""What compiled code needs and numba does not offer: bits, places in memory, and words that threads share."""

from __future__ import annotations

from typing import Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_ORDER: Final = "seq_cst"
_WORD: Final = 8
"""Bytes of what is shared."""

give_way: Final[Any] = types.ExternalFunction("sched_yield", types.int32())
"""Let another thread have this processor if one waits for it."""

doze: Final[Any] = types.ExternalFunction("usleep", types.int32(types.uint32))
"""Leave the processor for so many microseconds, and some more."""


@intrinsic
def from_bits(_context: Any, bits: Any) -> Any:
    """The float32 of these 32 bits."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.int32), generate


@intrinsic
def to_bits(_context: Any, number: Any) -> Any:
    """The bits of a float32."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@intrinsic
def to_bfloat16(_context: Any, number: Any) -> Any:
    """The bits of the bfloat16 that is nearest to a float32, of two the even one. What is not a number stays so."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        kind = ir.IntType(32)
        bits = builder.bitcast(arguments[0], kind)
        kept = builder.lshr(bits, ir.Constant(kind, 16))
        even = builder.and_(kept, ir.Constant(kind, 1))
        near = builder.add(builder.add(bits, ir.Constant(kind, 0x7FFF)), even)
        # All bits that say that this is no number may be among those cut off.
        wrong = builder.or_(bits, ir.Constant(kind, 0x400000))
        chosen = builder.select(builder.fcmp_unordered("uno", *arguments, *arguments), wrong, near)
        return builder.trunc(builder.lshr(chosen, ir.Constant(kind, 16)), ir.IntType(16))

    return types.int16(types.float32), generate


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def pointer(_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(types.intp), generate

    return pointer


float32_at: Final = _pointer_to(types.float32)
int32_at: Final = _pointer_to(types.int32)
float64_at: Final = _pointer_to(types.float64)
int64_at: Final = _pointer_to(types.int64)
"""Pointers to what lies at an address, for `numba.carray`."""


@intrinsic
def call_at(_context: Any, function: Any, place: Any, part: Any) -> Any:
    """Call the function (place, part) that stands at an address."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        kind = ir.FunctionType(ir.VoidType(), [word, word])
        builder.call(builder.inttoptr(arguments[0], kind.as_pointer()), arguments[1:])
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64), generate


def _word(builder: Any, base: Any, index: Any) -> Any:
    """A pointer to one word of an array that begins at `base`."""
    address = builder.add(base, builder.mul(index, ir.Constant(index.type, _WORD)))
    return builder.inttoptr(address, ir.IntType(64).as_pointer())


@intrinsic
def load_word(_context: Any, base: Any, index: Any) -> Any:
    """Word `index` of the int64 array at address `base`, as other threads have left it."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_word(builder, *arguments), _ORDER, _WORD)

    return types.int64(types.intp, types.intp), generate


@intrinsic
def store_word(_context: Any, base: Any, index: Any, value: Any) -> Any:
    """Set a word; who sees it also sees all that was written before."""

    def generate(context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        builder.store_atomic(arguments[2], _word(builder, *arguments[:2]), _ORDER, _WORD)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.int64), generate


@intrinsic
def add_to_word(_context: Any, base: Any, index: Any, more: Any) -> Any:
    """Add to a word; gives what it was before."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, *arguments[:2]), arguments[2], _ORDER)

    return types.int64(types.intp, types.intp, types.int64), generate


@intrinsic
def replace_word(_context: Any, base: Any, index: Any, old: Any, new: Any) -> Any:
    """Set a word if it still is `old`; whether it was."""

    def generate(_context: Any, builder: Any, _signature: Any, arguments: Any) -> Any:
        place = _word(builder, *arguments[:2])
        found = builder.cmpxchg(place, arguments[2], arguments[3], _ORDER, _ORDER)
        return builder.extract_value(found, 1)

    return types.boolean(types.intp, types.intp, types.int64, types.int64), generate
