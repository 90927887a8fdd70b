"""Arrays for tests of kernels, and crews of one thread and of two."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from rlhf_core.models.fused import rotated
from rlhf_core.models.kernels.crew import Crew

Array = NDArray[np.float32]

KEPT = {hands: Crew(hands) for hands in (1, 2)}
ALONE = KEPT[1].words
NOTHING = np.zeros(0, dtype=np.float32)
NO_TABLE = np.zeros((0, 1), dtype=np.float32)


def array(*rows: Any) -> Array:
    return np.array(rows, dtype=np.float32)


def noise(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def bfloat16(array: Array) -> tuple[NDArray[np.int32], Array]:
    """An array rounded to bfloat16, as the words that a kernel is given, and as the numbers that they are."""
    rounded = torch.from_numpy(array).bfloat16()
    return rounded.view(torch.int32).numpy(), rounded.float().numpy()


class close:
    """Equal to an array of the same shape that is as near as a tolerance, part and whole. What `approx` is, which
    compares arrays a number at a time."""

    __array_ufunc__ = None  # so that numpy leaves the comparison to it

    def __init__(self, array: NDArray[Any], tolerance: float = 1e-5) -> None:
        self._array, self._tolerance = np.asarray(array), tolerance

    def __eq__(self, other: object) -> bool:
        theirs = np.asarray(other)
        within = {"rtol": self._tolerance, "atol": self._tolerance}
        return theirs.shape == self._array.shape and np.allclose(theirs, self._array, equal_nan=False, **within)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"{self._array} +- {self._tolerance}"


def tables(positions: int, size: int) -> tuple[Array, Array]:
    """Rotary tables [positions, D] of angles drawn at random, `sin` with its first half negated."""
    angles = noise(positions, size // 2, seed=9) * 3
    return np.tile(np.cos(angles), 2), np.concatenate([-np.sin(angles), np.sin(angles)], axis=1)


def turned(heads: Array, cos: Array, sin: Array, positions: list[int]) -> Array:
    """heads [N, H, D] at `positions`, rotated as the fused forward does it."""
    at_each = [torch.from_numpy(table[positions])[:, None] for table in (cos, sin)]
    return rotated(torch.from_numpy(heads.copy()), *at_each).numpy()
