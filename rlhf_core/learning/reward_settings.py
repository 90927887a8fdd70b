"""Settings of one reward-model fit. No torch: a process that only reads them does not load it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

Count = Annotated[int, Meta(ge=1)]
Positive = Annotated[float, Meta(gt=0.0)]
NonNegative = Annotated[float, Meta(ge=0.0)]
Share = Annotated[float, Meta(ge=0.0, lt=1.0)]


class RewardSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a reward model is fitted: first the head alone, to its optimum, then everything for `epochs`
    passes.
    """

    ridge: Positive = 3.0
    """Pull of the head's weights to 0 while the head is solved for. More trusts each judgement less."""
    epochs: Annotated[int, Meta(ge=0)] = 2
    """Passes over the judgements in which the trunk learns too. 0 leaves the trunk as the policy has it."""
    learning_rate: Positive = 2e-4
    """AdamW learning rate of the trunk at its peak; warms up, then falls linearly to 0. Large models want
    1e-5.
    """
    head_learning_rate: Positive = 2e-4
    """The same of the scalar head and of the thumbs' slope and threshold."""
    batch_size: Count = 16
    """Judgements per optimizer step; a pair is one judgement and two responses."""
    label_smoothing: Annotated[float, Meta(ge=0.0, lt=0.5)] = 0.05
    """Share of judgements taken to be slips. More makes scores shyer and disagreement cheaper."""
    thumbs_weight: NonNegative = 1.0
    """Weight of one thumb against one pair."""
    centering: NonNegative = 0.01
    """Weight of (s_chosen + s_rejected)^2; keeps the level of scores near 0 where only pairs are given."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay of the trunk."""
    warmup_share: Share = 0.1
    """Share of the steps over which the learning rates rise."""
    clip_norm: Positive = 1.0
    """The gradient's norm is cut to this before each step."""
