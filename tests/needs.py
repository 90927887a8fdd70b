"""What some tests need of the machine; where it is absent they are skipped, and say so."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def needs_cuda(test: Any) -> Any:
    """Decorates a test: `pytest -m gpu` chooses those."""
    return pytest.mark.gpu(pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")(test))
