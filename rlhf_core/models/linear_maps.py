"""Linear maps that share their input, and their gradients, for steps of autograd that are written out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear


class Apart:
    """Linear maps of one input, each a product of its own: to join their weights would cost what it saves."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> None:
        self.kept, self._biases = list(weights), biases

    def __call__(self, x: Tensor) -> list[Tensor]:
        """x [N, K] -> [N, M] of each."""
        return [linear(x, weight, bias) for weight, bias in zip(self.kept, self._biases, strict=True)]

    def blank(self, like: Tensor) -> list[Tensor]:
        """Room for gradients [N, M] of the outputs."""
        return [like.new_empty(like.shape[0], len(weight)) for weight in self.kept]

    def as_given(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the outputs as the next two read them."""
        return list(gradients)

    def to_input(self, gradients: Sequence[Tensor]) -> Tensor:
        """[N, K], in the type of the products."""
        total = gradients[0] @ self.kept[0]
        for gradient, weight in zip(gradients[1:], self.kept[1:], strict=True):
            total.addmm_(gradient, weight)
        return total

    def let_go(self) -> None:
        """Hold no tensor but biases. `kept`, what is multiplied, is to be set again before the next product."""
        self.kept = []

    def to_parameters(self, gradients: Sequence[Tensor], x: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of each weight and bias in turn, where wanted."""
        return [
            found
            for at, gradient in enumerate(gradients)
            for found in (
                gradient.t() @ x if wanted[2 * at] else None,
                gradient.sum(0, dtype=torch.float32) if wanted[2 * at + 1] else None,
            )
        ]


class Joined:
    """The same in another type: weights are copied to it side by side, for one product."""

    def __init__(self, weights: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: torch.dtype) -> None:
        self._sizes = [len(weight) for weight in weights]
        self.kept = [_side_by_side(weights, self._sizes, dtype)]
        # All have a bias or none has: that is how every family builds them. It is added within the product, whose
        # result is then rounded once.
        known = [bias.to(dtype) for bias in biases if bias is not None]
        self._bias = torch.cat(known) if known else None
        self._whole: Tensor | None = None

    def __call__(self, x: Tensor) -> list[Tensor]:
        return list(linear(x, self.kept[0], self._bias).split(self._sizes, 1))

    def blank(self, like: Tensor) -> list[Tensor]:
        self._whole = like.new_empty(like.shape[0], sum(self._sizes), dtype=self.kept[0].dtype)
        return list(self._whole.split(self._sizes, 1))

    def as_given(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        parts = self.blank(gradients[0])
        for part, gradient in zip(parts, gradients, strict=True):
            part.copy_(gradient)
        return parts

    def to_input(self, gradients: Sequence[Tensor]) -> Tensor:
        """Of gradients from `blank` or `as_given`."""
        assert self._whole is not None
        assert gradients[0].data_ptr() == self._whole.data_ptr()
        return self._whole @ self.kept[0]

    def let_go(self) -> None:
        self.kept, self._whole = [], None

    def to_parameters(self, gradients: Sequence[Tensor], x: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """Of gradients from `blank` or `as_given`."""
        assert self._whole is not None
        weights: Sequence[Tensor | None] = [None] * len(gradients)
        if any(wanted[::2]):
            weights = (self._whole.t() @ x).float().split(self._sizes)
        return [
            found
            for at, gradient in enumerate(gradients)
            for found in (
                weights[at] if wanted[2 * at] else None,
                gradient.sum(0, dtype=torch.float32) if wanted[2 * at + 1] else None,
            )
        ]


def linear_maps(weights: Sequence[Tensor], biases: Sequence[Tensor | None], dtype: torch.dtype) -> Apart | Joined:
    """Maps by weights [M, K] and biases [M] that compute in this type."""
    return Apart(weights, biases) if dtype == torch.float32 else Joined(weights, biases, dtype)


def _side_by_side(weights: Sequence[Tensor], sizes: Sequence[int], dtype: torch.dtype) -> Tensor:
    """[sum of M, K] in another type."""
    if len(weights) == 1:
        return weights[0].to(dtype)
    joined = weights[0].new_empty(sum(sizes), weights[0].shape[1], dtype=dtype)
    for weight, part in zip(weights, joined.split(sizes), strict=True):
        part.copy_(weight)
    return joined
