from __future__ import annotations

import pytest

from rlhf_core.models.kernels.crew import Words
from tests.rlhf_core.models.kernels.arrays import KEPT


@pytest.fixture(scope="session")
def crews() -> dict[int, Words]:
    """What kernels are told to have one thread compute, or two."""
    return {hands: crew.muster() for hands, crew in KEPT.items()}
