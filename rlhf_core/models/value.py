"""The value head: one number per position, read off the policy's own last hidden state.

It shares the policy's trunk, so one forward pass gives logits and values. It starts at zero: scores are
normalised to mean zero, so zero is the best guess before anything is known, and the first advantages are then
the plain rewards to go.
"""

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """Linear map from hidden states [..., D] to values [...], computed in float32 (or wider)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """Predicted return [...] for each hidden state [..., D]."""
        values: Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return values.to(torch.promote_types(values.dtype, torch.float32)).squeeze(-1)
