"""What can be turned in a LoRA adapter. Free of torch, so a process that only passes it on can read it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from rlhf_core.errors import SettingsError


class LoraSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A low-rank term beside frozen projections (Hu et al. 2021)."""

    rank: Annotated[int, Meta(ge=1)] = 16
    """Columns of each term: how much it can express, and what it costs."""
    alpha: Annotated[float, Meta(gt=0.0)] = 32.0
    """Terms are scaled by alpha / rank. Higher learns faster at the same learning rate."""
    targets: tuple[str, ...] = ()
    """Names of the projections, such as q_proj. Empty: every projection of every layer, the output layer excepted."""

    def __post_init__(self) -> None:
        """Refuse, naming key and value, what is out of bounds."""
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                raise SettingsError(f"LoRA setting {field.name} is {value!r}: {error}") from None
