"""The value head: one number per position, read off the policy's own last hidden state.

It shares the policy's trunk, so one forward pass gives logits and values. It starts at zero: scores are
normalised to mean zero, so zero is the best guess before anything is known, and the first advantages are then
the plain rewards to go.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


class ValueHead(nn.Module):
    """Linear map from hidden states [..., D] to values [...], computed in float32 (or wider)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @classmethod
    def of(cls, model: PreTrainedModel, start: nn.Linear | None = None) -> "ValueHead":
        """A head for `model`, on its device. With the linear head of a reward model that reads the same hidden states
        (`start`, [1, D]) it begins as that; one of another width cannot be read here, and it begins at zero."""
        # What the language-model head reads, which is not always as wide as the layers.
        head = cls(int(model.get_output_embeddings().weight.shape[1])).to(model.device)
        if start is not None and start.weight.shape == head.linear.weight.shape:
            with torch.no_grad():
                head.linear.weight.copy_(start.weight)
                head.linear.bias.copy_(torch.zeros_like(head.linear.bias) if start.bias is None else start.bias)
        return head

    def forward(self, hidden: Tensor) -> Tensor:
        """Predicted return [...] for each hidden state [..., D]."""
        # Under autocast too: a value in bfloat16 would have three digits, and advantages are differences of values.
        with torch.autocast(hidden.device.type, enabled=False):
            values: Tensor = self.linear(hidden.to(self.linear.weight.dtype))
        return values.to(torch.promote_types(values.dtype, torch.float32)).squeeze(-1)
