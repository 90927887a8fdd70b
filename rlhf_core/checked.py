"""Settings that refuse what is out of bounds. Free of torch."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from rlhf_core.errors import SettingsError

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0.0)]
NonNegative = Annotated[float, Meta(ge=0.0)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]


class Checked(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Refuses, naming key and value, what annotations do not allow: a struct made in code is otherwise unchecked."""

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                raise SettingsError(f"{type(self).__name__} {field.name} is {value!r}: {error}") from None
