"""The reward model: a scalar head on the trunk of a decoder.

A trunk is the part of a `transformers` causal model below its LM head. Right padding only: attention is
causal, so what stands to the right of a token cannot change it, and a row is read at its length, never by
searching for a padding id.
"""

import math

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.baselines import Baselines


class RewardModel(nn.Module):
    """Scores a prompt with a response by a linear head on the last real token: the end token, if there is
    one.

    A score is `gain * head + bias`; training sees gain 1 and bias 0, `normalise` sets them afterwards. The
    slope and threshold of thumbs live here as well, in units of the score: P(up) = sigma(alpha * score -
    threshold).
    """

    gain: Tensor
    bias: Tensor
    baselines: Baselines
    """Rules without a model, fitted on the same judgements: what this model must beat."""
    fit_settings: dict[str, float]
    """The settings of the fit, kept for the record."""

    def __init__(self, trunk: PreTrainedModel, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = linear_head(hidden_size(trunk), generator)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.threshold = nn.Parameter(torch.zeros(()))
        self.baselines = Baselines()
        self.fit_settings = {}
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def forward(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Scores [B] of `input_ids` [B, T], padded on the right, with `lengths` [B] real tokens each, at
        least 1.
        """
        hidden = self.trunk(input_ids=input_ids, use_cache=False).last_hidden_state
        last = hidden[torch.arange(len(lengths), device=hidden.device), lengths - 1]
        raw: Tensor = self.head(last.float()).squeeze(-1)
        return self.gain * raw + self.bias

    def approval(self, scores: Tensor) -> Tensor:
        """P(up) [B] of answers with these `scores` [B]."""
        return torch.sigmoid(self.log_alpha.exp() * scores - self.threshold)

    @torch.no_grad()
    def normalise(self, mean: float, std: float) -> None:
        """Change the unit so that scores with this `mean` and `std` get mean 0 and std 1.

        alpha and threshold change along, so `approval` of an answer stays what it was. `std` is above zero.
        """
        self.threshold.sub_(self.log_alpha.exp() * mean)
        self.log_alpha.add_(math.log(std))
        self.gain.div_(std)
        self.bias.sub_(mean).div_(std)


def linear_head(width: int, generator: torch.Generator | None = None) -> nn.Linear:
    """A scalar head with weights from N(0, 1 / (width + 1)) and bias 0, as in lm-human-preferences."""
    head = nn.Linear(width, 1)
    nn.init.normal_(head.weight, std=1.0 / math.sqrt(width + 1), generator=generator)
    nn.init.zeros_(head.bias)
    return head


def hidden_size(trunk: PreTrainedModel) -> int:
    """Width of the trunk's last hidden state, also where the text model's configuration is nested."""
    return int(trunk.config.get_text_config().hidden_size)
