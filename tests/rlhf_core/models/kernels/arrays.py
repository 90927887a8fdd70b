"""Arrays for tests of kernels, and crews of one thread and of two."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
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


def close(array: NDArray[Any], tolerance: float = 1e-5) -> Any:
    return pytest.approx(array, abs=tolerance, rel=tolerance)


def tables(positions: int, size: int) -> tuple[Array, Array]:
    """Rotary tables [positions, D] of angles drawn at random, `sin` with its first half negated."""
    angles = noise(positions, size // 2, seed=9) * 3
    return np.tile(np.cos(angles), 2), np.concatenate([-np.sin(angles), np.sin(angles)], axis=1)


def turned(heads: Array, cos: Array, sin: Array, positions: list[int]) -> Array:
    """heads [N, H, D] at `positions`, rotated as the fused forward does it."""
    at_each = [torch.from_numpy(table[positions])[:, None] for table in (cos, sin)]
    return rotated(torch.from_numpy(heads.copy()), *at_each).numpy()
