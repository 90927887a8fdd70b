"""How gradients that are written out by hand are run."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch.autograd.function import once_differentiable

Given = ParamSpec("Given")
Found = TypeVar("Found")


def as_written(backward: Callable[Given, Found]) -> Callable[Given, Found]:
    """For the `backward` of an autograd function: its products are in the types that it gives them, whatever context
    the pass runs in, and it has no gradient itself."""

    @wraps(backward)
    def run(*given: Given.args, **named: Given.kwargs) -> Found:
        gradient: Any = given[1]
        with torch.autocast(gradient.device.type, enabled=False):
            return backward(*given, **named)

    decorated: Any = once_differentiable(cast(Any, run))
    return cast(Callable[Given, Found], decorated)
