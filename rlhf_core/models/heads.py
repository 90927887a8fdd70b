"""The reward model: linear heads on the trunk of a decoder, one for the overall score, one per axis, K for doubt.

A trunk is the part of a `transformers` causal model below its LM head. Documents are read at their spans, never by
searching for a padding id.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf_core.axes import AXES
from rlhf_core.baselines import Baselines
from rlhf_core.models.documents import Documents, run_documents, use_documents
from rlhf_core.models.side_by_side import SHARED

PromptResponse = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its response, end token included; neither is empty."""
AnswerGroup = tuple[Sequence[int], Sequence[Sequence[int]]]
"""Token ids of a prompt and of several responses to it."""

NO_TIES = -30.0
"""Start of `tie_u`: softplus of it is 1e-13."""


class AnswerBatch(NamedTuple):
    """B responses in R documents: a prompt, and one response to it or several."""

    token_ids: Tensor
    """[N] long, the documents one after another."""
    documents: Documents
    """Which of them belong together, and what they see."""
    said: Tensor
    """[S] long: where the responses' tokens stand in `token_ids`, one response after another."""
    lengths: Tensor
    """[B] long, tokens of each response."""

    @classmethod
    def of(cls, answers: Sequence[PromptResponse], device: torch.device) -> AnswerBatch:
        """A document per answer. Raises ValueError for an empty prompt or response."""
        return cls.of_groups([(prompt, (response,)) for prompt, response in answers], device)

    @classmethod
    def of_groups(cls, groups: Sequence[AnswerGroup], device: torch.device) -> AnswerBatch:
        """A document per prompt, which all its responses share: it is computed once. Responses come in order of
        groups."""
        if not all(prompt and responses and all(responses) for prompt, responses in groups):
            raise ValueError("an empty prompt or response cannot be scored")
        tokens = [token for prompt, responses in groups for part in (prompt, *responses) for token in part]
        branches = torch.tensor([branch for group in groups for branch in _branches(group)])
        lengths = [len(response) for _, responses in groups for response in responses]
        documents = Documents(
            [len(prompt) + sum(map(len, responses)) for prompt, responses in groups],
            device,
            branches if len(lengths) > len(groups) else None,
        )
        said = (branches != SHARED).nonzero()[:, 0].to(device)
        return cls(torch.tensor(tokens, device=device), documents, said, torch.tensor(lengths, device=device))


class RewardModel(nn.Module):
    """Scores a response to a prompt by linear heads on two readings of the trunk's last hidden state: its mean over the
    response, and its value at the last token, which is the end token if there is one.

    A score is `gain * head + bias`; fitting sees gain 1 and bias 0, `normalise` sets them afterwards. What turns scores
    into probabilities of judgements lives here as well, in units of the score: P(up) = sigma(alpha s - threshold), and
    Rao and Kupper's model of choices on (pair_scale / temperature) times the difference of two scores.
    """

    gain: Tensor
    bias: Tensor
    pair_scale: Tensor
    """Log odds of a choice per unit of score, as fitted."""
    temperature: Tensor
    """By how much held-out choices found the scores too sure; 1 until it was measured."""
    length_slope: Tensor
    """Points of score per unit of log length between answers to one prompt, and ..."""
    log_length_mean: Tensor
    """... the log length at which taking it off changes nothing."""
    axis_weight: Tensor
    """[A, W]: heads of AXES."""
    axis_bias: Tensor
    """[A]."""
    axis_scale: Tensor
    """[A]: log odds of `good` per unit of an axis score, and ..."""
    axis_offset: Tensor
    """[A]: ... at score 0."""
    axis_learned: Tensor
    """[A] bool; the heads of the other axes are zero and mean nothing."""
    ensemble_weight: Tensor
    """[K, W]: heads fitted to resampled raters, normalised like the score."""
    ensemble_bias: Tensor
    """[K]."""
    baselines: Baselines
    """Rules without a model, fitted on the same judgements: what this model must beat."""
    fit_settings: dict[str, float]
    """The settings of the fit, kept for the record."""
    raters: dict[str, dict[str, float]]
    """By pseudonym: how many judgements, how much they were believed, and how the rater differs. For the record."""

    def __init__(self, trunk: PreTrainedModel, generator: torch.Generator | None = None, *, ensemble: int = 0) -> None:
        """The head starts from N(0, 1 / (width + 1)), as in lm-human-preferences. `ensemble` is K."""
        super().__init__()
        use_documents(trunk)
        self.trunk = trunk
        # The last hidden state is as wide as the embeddings, which the layers need not be.
        width = 2 * int(trunk.get_input_embeddings().weight.shape[1])
        self.head = nn.Linear(width, 1)
        nn.init.normal_(self.head.weight, std=1.0 / math.sqrt(width + 1), generator=generator)
        nn.init.zeros_(self.head.bias)
        self.log_alpha = nn.Parameter(torch.zeros(()))
        self.threshold = nn.Parameter(torch.zeros(()))
        self.tie_u = nn.Parameter(torch.tensor(NO_TIES))
        self.side_bias = nn.Parameter(torch.zeros(()))
        self.baselines = Baselines()
        self.fit_settings = {}
        self.raters = {}
        for name, value in _NEUTRAL.items():
            self.register_buffer(name, torch.tensor(value))
        self.register_buffer("axis_weight", torch.zeros(len(AXES), width))
        for name, value in (("axis_bias", 0.0), ("axis_scale", 1.0), ("axis_offset", 0.0)):
            self.register_buffer(name, torch.full((len(AXES),), value))
        self.register_buffer("axis_learned", torch.zeros(len(AXES), dtype=torch.bool))
        self.register_buffer("ensemble_weight", torch.zeros(ensemble, width))
        self.register_buffer("ensemble_bias", torch.zeros(ensemble))

    @property
    def device(self) -> torch.device:
        return self.head.weight.device

    @property
    def learned_axes(self) -> tuple[str, ...]:
        """The axes that there were enough judgements for, in the order of AXES."""
        return tuple(axis for axis, learned in zip(AXES, self.axis_learned.tolist(), strict=True) if learned)

    @property
    def eta(self) -> Tensor:
        """The tie parameter of Rao and Kupper, in log odds; 0 where no ties were seen."""
        return functional.softplus(self.tie_u)

    def hidden(self, batch: AnswerBatch) -> Tensor:
        """The trunk's last hidden states [S, D] of the responses' tokens. This is what may run under autocast."""
        return run_documents(self.trunk, batch.token_ids, batch.documents, batch.said)

    def read(self, hidden: Tensor, batch: AnswerBatch) -> Tensor:
        """What the heads read, [B, W] with W = 2 D: mean over the response, then last token, in float32.

        The last token alone tells less from few judgements: the mean keeps words that were said early.
        """
        states, ends = hidden.float(), batch.lengths.cumsum(0)
        at = torch.arange(len(states), device=hidden.device)
        own = (at < ends[:, None]) & (at >= (ends - batch.lengths)[:, None])
        with torch.autocast(hidden.device.type, enabled=False):
            mean = (own / batch.lengths[:, None]) @ states
        return torch.cat([mean, states[ends - 1]], dim=1)

    def features(self, batch: AnswerBatch) -> Tensor:
        """`read` of `hidden`, [B, W]."""
        return self.read(self.hidden(batch), batch)

    def forward(self, batch: AnswerBatch) -> Tensor:
        """Scores [B]."""
        return self.score_features(self.features(batch))

    def score_features(self, features: Tensor) -> Tensor:
        """Scores [B] of features [B, W]."""
        raw: Tensor = self.head(features).squeeze(-1)
        return self.gain * raw + self.bias

    def approval(self, scores: Tensor) -> Tensor:
        """P(up) [B] of responses with these `scores` [B]."""
        return torch.sigmoid(self.log_alpha.exp() * scores - self.threshold)

    def choice_logits(self, left_scores: Tensor, right_scores: Tensor) -> Tensor:
        """Calibrated log odds [B] of choosing left over right, for somebody who does not look at sides."""
        return self.pair_scale / self.temperature * (left_scores - right_scores)

    def axis_probability(self, axis: str, scores: Tensor) -> Tensor:
        """Calibrated P(good on `axis`) [B] of responses with these scores [B] on that axis."""
        at = AXES.index(axis)
        return torch.sigmoid(self.axis_scale[at] * scores + self.axis_offset[at])

    @torch.no_grad()
    def normalise(self, mean: float, std: float) -> None:
        """Change the unit so that scores with this `mean` and `std` get mean 0 and std 1.

        What turns scores into probabilities changes along, so `approval` of a response and the odds of a choice stay
        what they were. `std` is above zero.
        """
        self.threshold.sub_(self.log_alpha.exp() * mean)
        self.log_alpha.add_(math.log(std))
        self.pair_scale.mul_(std)
        self.length_slope.div_(std)
        self.gain.div_(std)
        self.bias.sub_(mean).div_(std)


_NEUTRAL = {
    "gain": 1.0,
    "bias": 0.0,
    "pair_scale": 1.0,
    "temperature": 1.0,
    "length_slope": 0.0,
    "log_length_mean": 0.0,
}


def _branches(group: AnswerGroup) -> list[int]:
    """Which response each token of a document belongs to, counted from 1, or SHARED for the prompt's."""
    prompt, responses = group
    branches = [SHARED] * len(prompt)
    for branch, response in enumerate(responses, start=SHARED + 1):
        branches += [branch] * len(response)
    return branches
