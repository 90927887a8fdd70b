"""The reward model: a scalar head on the trunk of a decoder.

A trunk is the part of a `transformers` causal model below its LM head. Right padding only: attention is
causal, so what stands to the right of a token cannot change it, and a row is read at its lengths, never by
searching for a padding id.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlhf_core.baselines import Baselines

PromptResponse = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its response, end token included; neither is empty."""


class AnswerBatch(NamedTuple):
    """B prompts with their responses, T tokens at most, padded on the right."""

    input_ids: Tensor
    """[B, T] long. What fills up a row is never read, so any id does."""
    prompt_lengths: Tensor
    """[B] long."""
    lengths: Tensor
    """[B] long, prompt and response together."""

    @classmethod
    def of(cls, answers: Sequence[PromptResponse], device: torch.device) -> "AnswerBatch":
        """Raises ValueError for an empty prompt or response."""
        if not all(prompt and response for prompt, response in answers):
            raise ValueError("an empty prompt or response cannot be scored")
        rows = [torch.tensor([*prompt, *response]) for prompt, response in answers]
        return cls(
            nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device),
            torch.tensor([len(prompt) for prompt, _ in answers], device=device),
            torch.tensor([len(row) for row in rows], device=device),
        )


class RewardModel(nn.Module):
    """Scores a response to a prompt by a linear head on two readings of the trunk's last hidden state: its
    mean over the response, and its value at the last token, which is the end token if there is one.

    A score is `gain * head + bias`; fitting sees gain 1 and bias 0, `normalise` sets them afterwards. The
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
        """The head starts from N(0, 1 / (width + 1)), as in lm-human-preferences."""
        super().__init__()
        self.trunk = trunk
        # The text model's configuration may be nested.
        width = 2 * int(trunk.config.get_text_config().hidden_size)
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=1.0 / math.sqrt(width + 1), generator=generator)
        nn.init.zeros_(self.head.bias)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.threshold = nn.Parameter(torch.zeros(()))
        self.baselines = Baselines()
        self.fit_settings = {}
        self.register_buffer("gain", torch.ones(()))
        self.register_buffer("bias", torch.zeros(()))

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    def features(self, batch: AnswerBatch) -> Tensor:
        """What the head reads, [B, 2 D]: mean over the response, then last token, in float32.

        The last token alone tells less from few judgements: the mean keeps words that were said early.
        """
        hidden: Tensor = self.trunk(input_ids=batch.input_ids, use_cache=False).last_hidden_state.float()
        position = torch.arange(hidden.shape[1], device=hidden.device)
        said = (position >= batch.prompt_lengths[:, None]) & (position < batch.lengths[:, None])
        counts = (batch.lengths - batch.prompt_lengths)[:, None]
        mean = torch.where(said[:, :, None], hidden, torch.zeros_like(hidden)).sum(1) / counts
        last = hidden[torch.arange(len(hidden), device=hidden.device), batch.lengths - 1]
        return torch.cat([mean, last], dim=1)

    def forward(self, batch: AnswerBatch) -> Tensor:
        """Scores [B]."""
        raw: Tensor = self.head(self.features(batch)).squeeze(-1)
        return self.gain * raw + self.bias

    def approval(self, scores: Tensor) -> Tensor:
        """P(up) [B] of responses with these `scores` [B]."""
        return torch.sigmoid(self.log_alpha.exp() * scores - self.threshold)

    @torch.no_grad()
    def normalise(self, mean: float, std: float) -> None:
        """Change the unit so that scores with this `mean` and `std` get mean 0 and std 1.

        alpha and threshold change along, so `approval` of a response stays what it was. `std` is above zero.
        """
        self.threshold.sub_(self.log_alpha.exp() * mean)
        self.log_alpha.add_(math.log(std))
        self.gain.div_(std)
        self.bias.sub_(mean).div_(std)
