"""How kernels are compiled, and the exponential that their loops use."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import numba
import numpy as np

from rlhf_core.models.kernels.intrinsics import from_bits

Function = TypeVar("Function", bound=Callable[..., Any])

FLAGS: Final = {"contract", "nsz"}
"""What the compiler may do to sums and products: fuse them. It may not assume that numbers are finite, and not reorder
them: of a loop it makes two, one for arrays that lie far enough apart in memory, and would order each as it likes. Sums
along a row are of sums.py."""

_OPTIONS: Final[dict[str, Any]] = {"fastmath": FLAGS, "nogil": True, "error_model": "numpy"}
_CALLBACKS: Final[list[Any]] = []
"""What holds their code."""

ZERO, ONE = np.float32(0.0), np.float32(1.0)
LOWEST = np.float32(-np.inf)
_HALF = np.float32(0.5)
_LOG2E = np.float32(1.4426950408889634)
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
_LEAST, _MOST = np.float32(-87.3), np.float32(88.0)
_C0, _C1, _C2, _C3, _C4, _C5 = (
    np.float32(number) for number in (1.9875691e-4, 1.3981999e-3, 8.3334519e-3, 4.1665796e-2, 0.16666666, 0.5)
)


@functools.cache
def _keep_by_content() -> None:
    """Machine code is kept under what all kernels say. numba itself looks at the file of a function alone, and would go
    on using what an edited kernel in another file was."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    place = Path(numba.config.CACHE_DIR or Path(__file__).parent / "__pycache__")
    numba.config.CACHE_DIR = str(place / hashlib.sha256(sources).hexdigest()[:16])


def compiled(function: Function) -> Function:
    """The function as machine code; kept on disk where there is a place for it."""
    _keep_by_content()
    try:
        made: Function = numba.njit(cache=True, **_OPTIONS)(function)
    except RuntimeError:
        # Neither beside this file nor in the user's cache may anything be written.
        made = numba.njit(**_OPTIONS)(function)
    return made


def callback(signature: Any, function: Callable[..., Any]) -> int:
    """The address of the function as machine code, for as long as the process lives."""
    _keep_by_content()
    try:
        made = numba.cfunc(signature, cache=True, **_OPTIONS)(function)
    except RuntimeError:
        made = numba.cfunc(signature, **_OPTIONS)(function)
    _CALLBACKS.append(made)
    return int(made.address)


@numba.njit(inline="always", error_model="numpy")
def exp(x: Any) -> Any:
    """exp of a float32 to 3e-7, as 2^n times a polynomial (Cephes' expf): unlike the library's, loops of it vectorise.
    0 below the least normal number."""
    vanishes = x < _LEAST
    x = max(min(x, _MOST), _LEAST)
    n = np.int32(x * _LOG2E + (_HALF if x >= ZERO else -_HALF))
    whole = np.float32(n)
    r = x - whole * _LN2_HIGH - whole * _LN2_LOW
    y = ((((_C0 * r + _C1) * r + _C2) * r + _C3) * r + _C4) * r + _C5
    return ZERO if vanishes else (y * r * r + r + ONE) * from_bits((n + np.int32(127)) << np.int32(23))
