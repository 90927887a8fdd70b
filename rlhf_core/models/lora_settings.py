"""What can be turned in a LoRA adapter. Free of torch, so a process that only passes it on can read it."""

from __future__ import annotations

from rlhf_core.checked import Checked, Count, Positive


class LoraSettings(Checked, frozen=True, kw_only=True):
    """A low-rank term beside frozen projections (Hu et al. 2021)."""

    rank: Count = 16
    """Columns of each term: how much it can express, and what it costs."""
    alpha: Positive = 32.0
    """Terms are scaled by alpha / rank. Higher learns faster at the same learning rate."""
    targets: tuple[str, ...] = ()
    """Names of the projections, such as q_proj. Empty: every projection of every layer, the output layer excepted."""
