"""Settings of one reward-model fit, and of how its scores are read. No torch: who only reads them does not load it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from rlhf_core.checked import Checked, Count, NonNegative, Positive, Share


class RewardSettings(Checked, frozen=True, kw_only=True):
    """How a reward model is fitted: first the head alone, to its optimum, then everything for `epochs` passes."""

    ridge: Positive = 25.0
    """Pull of the head's weights to 0 while the head is solved for. More trusts each judgement less."""
    epochs: Annotated[int, Meta(ge=0)] = 2
    """Passes over the judgements in which the trunk learns too. 0 leaves the trunk as the policy has it."""
    learning_rate: Positive = 2e-4
    """AdamW learning rate of the trunk at its peak; warms up, then falls linearly to 0. Large models want 1e-5."""
    head_learning_rate: Positive = 2e-4
    """The same of the scalar head, of the thumbs' slope and threshold, of ties and of the raters."""
    batch_size: Count = 16
    """Judgements per optimizer step; a pair is one judgement and two responses."""
    rater_model: bool = True
    """Doubt votes by who gave them: honest, flipped or not looking, found by cross-fitting. Off: believe all."""
    label_smoothing: Annotated[float, Meta(ge=0.0, lt=0.5)] = 0.05
    """Share of judgements taken to be slips, where the rater model is off. More makes scores shyer."""
    thumbs_weight: NonNegative = 1.0
    """Weight of one thumb against one pair."""
    half_life_days: NonNegative = 0.0
    """A judgement so much older than the newest weighs half, an ancient one a fifth. 0: age does not matter."""
    centering: NonNegative = 0.01
    """Weight of (s_left + s_right)^2; keeps the level of scores near 0 where only pairs are given."""
    ensemble: Annotated[int, Meta(ge=0, le=64)] = 4
    """Further heads on the trunk, each fitted to resampled raters: they say how unsure a score is. 0: none."""
    weight_decay: NonNegative = 0.0
    """AdamW's decay of the trunk."""
    warmup_share: Share = 0.1
    """Share of the steps over which the learning rates rise."""
    clip_norm: Positive = 1.0
    """The gradient's norm is cut to this before each step."""


class Scoring(Checked, frozen=True, kw_only=True):
    """How a reward model's heads become the one number that a policy climbs."""

    heads: Literal["trained", "mean", "worst", "cautious"] = "trained"
    """trained: the head that learned with the trunk. Of the ensemble: its mean, worst, or mean less its variance."""
    variance_coef: NonNegative = 0.1
    """What a unit of the ensemble's variance costs a cautious score (Coste et al. 2310.02743: 0.1 for PPO)."""
    without_length: bool = False
    """Take off what the score gives for length alone: its slope on log length between answers to one prompt."""
