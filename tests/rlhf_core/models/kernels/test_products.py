"""Products against numbers worked by hand, and against torch over shapes that their blocks do not divide."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rlhf_core.models import kernels
from rlhf_core.models.kernels import vectors
from tests.rlhf_core.models.kernels.arrays import ALONE, NOTHING, array, bfloat16, close, noise


def test_a_product_of_five_outputs_is_what_the_hand_works_out() -> None:
    x = array([1, 2], [3, 4], [-1, 0])
    weight = array([1, 0], [0, 1], [1, 1], [2, -1], [0, 3])
    y = np.empty((3, 5), dtype=np.float32)
    kernels.multiply(x, weight, array(10, 20, 30, 40, 50), y, 0, ALONE)
    # Second row: 3 + 10, 4 + 20, 3 + 4 + 30, 2 * 3 - 4 + 40, 3 * 4 + 50.
    assert y.tolist() == [[11, 22, 33, 40, 56], [13, 24, 37, 42, 62], [9, 20, 29, 38, 50]]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("outputs", [1, 3, 4, 5, 7, 64, 513])
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 64, 65, 129])
def test_products_are_torchs_and_leave_other_columns_alone(rows: int, outputs: int, bias: bool) -> None:
    x, weight = noise(rows, 37), noise(outputs, 37, seed=1)
    added = noise(outputs, seed=2) if bias else NOTHING
    y = np.full((rows, outputs + 5), 7.0, dtype=np.float32)
    kernels.multiply(x, weight, added, y, 2, ALONE)
    expected = x.astype(np.float64) @ weight.T.astype(np.float64) + (added if bias else 0.0)
    assert y[:, 2:-3] == close(expected)
    assert (y[:, :2] == 7).all()
    assert (y[:, -3:] == 7).all()


@pytest.mark.parametrize("inputs", [38, 64, 200])
@pytest.mark.parametrize("multiply", [kernels.multiply, kernels.multiply_widened, kernels.multiply_bfloat16])
def test_a_row_is_multiplied_alike_whatever_stands_beside_it(multiply: Callable[..., None], inputs: int) -> None:
    x, weight, bias = noise(1, inputs), noise(64, inputs, seed=1), noise(64, seed=2)
    held = weight if multiply is kernels.multiply else bfloat16(weight)[0]
    alone = np.empty((1, 64), dtype=np.float32)
    multiply(x, held, bias, alone, 0, ALONE)
    for rows in (2, 3, 4, 5, 9, 70):
        crowded = np.empty((rows, 64), dtype=np.float32)
        multiply(np.repeat(x, rows, axis=0), held, bias, crowded, 0, ALONE)
        assert np.array_equal(crowded, np.repeat(alone, rows, axis=0))


def test_what_is_compiled_for_a_processor_without_wide_vectors_multiplies_as_well() -> None:
    # The code depends on the processor when it is first imported, so another process says that it has another one.
    features = ("sse4.2", "avx", "avx2", "fma", "f16c", "bmi", "bmi2")
    missing = [name for name in features if not vectors.has_feature(name)]
    if missing:
        pytest.skip(f"this processor has no {missing[0]}")
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "haswell",
        "NUMBA_CPU_FEATURES": ",".join(f"+{name}" for name in features),
    }
    script = """if True:
        import sys, pytest
        from rlhf_core.models.kernels import vectors
        assert not vectors.WIDE and not vectors.MULTIPLIES_BFLOAT16
        sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-k", "not compiled_for", *sys.argv[1:]]))
    """
    place = Path(__file__).parent
    tests = [str(place / f"test_{name}.py") for name in ("products", "products_bfloat16", "attention")]
    done = subprocess.run([sys.executable, "-c", script, *tests], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
