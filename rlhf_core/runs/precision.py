"""What `--compute` means on this machine."""

from __future__ import annotations

from rlhf_core.learning.devices import Compute
from rlhf_core.models.placement import choose_device, has_bfloat16


def choose_compute(wanted: str) -> Compute:
    """`auto` is bfloat16 where the device multiplies it in hardware."""
    if wanted != "auto":
        return "bfloat16" if wanted == "bfloat16" else "float32"
    return "bfloat16" if has_bfloat16(choose_device("auto")) else "float32"
