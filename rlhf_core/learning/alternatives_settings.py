"""What can be turned in the alternatives to PPO. Free of torch, so a process that only passes it on can read it.

Defaults are those published for full weights; adapters want five to ten times the learning rate, and a model of a few
million parameters a hundred times.
"""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from rlhf_core.checked import Checked, Count, NonNegative, Positive, Share

Several = Annotated[int, Meta(ge=2)]
Smoothing = Annotated[float, Meta(ge=0.0, lt=0.5)]


class StepSettings(Checked, frozen=True, kw_only=True):
    """How optimizer steps are made, the same in every algorithm here."""

    minibatch_size: Several = 32
    """Judgements, or sampled responses, per optimizer step."""
    microbatch_tokens: Count = 1024
    """Tokens of one forward and backward pass, with what attention pads. Changes memory and speed, not the
    gradient."""
    learning_rate: NonNegative = 1e-6
    """AdamW's at its peak; falls linearly to 0. Too high and the policy forgets how to speak."""
    warmup_share: Share = 0.1
    """Share of the steps over which the learning rate rises."""
    grad_clip: Positive = 1.0
    """The gradient's norm is cut to this before each step."""
    temperature: Positive = 1.0
    """Of sampling, and so of every logprob."""


class DPOSettings(StepSettings, frozen=True, kw_only=True):
    """Direct preference optimisation on pairs and ties."""

    epochs: Count = 1
    """Passes over the pairs."""
    kl_coef: Positive = 0.1
    """Weight of the KL to the reference in the objective that the loss solves. Less lets preferences move more."""
    label_smoothing: Smoothing = 0.0
    """Share of choices taken to be slips (cDPO). More makes the policy shyer."""
    tie_learning_rate: NonNegative = 1e-2
    """AdamW's for the tie threshold, one number, which starts where the share of ties puts it."""


class KTOSettings(StepSettings, frozen=True, kw_only=True):
    """Kahneman-Tversky optimisation on thumbs alone."""

    epochs: Count = 1
    """Passes over the thumbs."""
    kl_coef: Positive = 0.1
    """How quickly an answer's gain over the reference saturates. Less lets thumbs move more."""
    up_weight: Positive | None = None
    """Weight of a thumb up. None for this and `down_weight`: the smallest that balance the two kinds."""
    down_weight: Positive | None = None


class SamplingSettings(StepSettings, frozen=True, kw_only=True):
    """Steps made on responses of the policy's own: how it samples them, and when it stops."""

    updates: Count = 8
    """Rounds of sampling and learning."""
    rollouts: Several = 192
    """Responses sampled per update."""
    sampler_slots: Count = 96
    """Responses that the engine decodes at once while sampling; each holds a slot of its KV cache."""
    max_new_tokens: Count = 96
    """Longest response; one that reaches it without an end token did not end."""
    missing_end_penalty: NonNegative = 1.0
    """Taken off the score of a response that did not end."""
    score_clip: Positive = 5.0
    """Scores are clipped to +- this, in standard deviations of the reward model's reference samples."""
    kl_budget: Positive = 10.0
    """Training stops as soon as sampled responses are this far from the reference, nats per response."""


class RLOOSettings(SamplingSettings, frozen=True, kw_only=True):
    """Policy gradient on several responses to each prompt, whose scores are each other's baseline: no critic.

    The defaults are RLOO. `GRPO` below is the other published corner.
    """

    group_size: Several = 4
    """Responses to one prompt. `rollouts` is cut to whole groups."""
    epochs: Count = 1
    """Passes over the rollouts of one update."""
    baseline: Literal["leave_one_out", "group_mean", "group_normalised"] = "leave_one_out"
    """What a score is compared with: the mean of the others of its group (unbiased), that of the whole group (Dr.
    GRPO), or the latter over the group's standard deviation (GRPO), which also blows up the noise of alike scores."""
    ratio: Literal["response", "token"] = "response"
    """What the clip applies to: the probability ratio of a whole response, or that of each token."""
    clip_range: Positive = 0.2
    """Probability ratios below 1 less this earn nothing more."""
    clip_range_high: Positive = 0.2
    """Probability ratios above 1 plus this earn nothing more. Larger than `clip_range` keeps rare tokens alive."""
    kl_coef: NonNegative = 0.05
    """Weight of the KL to the reference."""
    kl_in: Literal["score", "loss"] = "score"
    """Whether the KL of a response is taken off its score (k1), or that of each token added to the loss (k2)."""
    target_kl: Positive = 0.02
    """An update ends early when the policy has moved 1.5 times this from where it sampled, nats per token."""
    importance_cap: Positive = 2.0
    """Largest weight that corrects for the sampler's logprobs differing from the trainer's."""


GRPO = RLOOSettings(
    group_size=8, baseline="group_normalised", ratio="token", clip_range_high=0.28, kl_coef=1e-3, kl_in="loss"
)
"""Group relative policy optimisation (DeepSeekMath), with the higher upper clip of DAPO."""


class OnlineDPOSettings(SamplingSettings, frozen=True, kw_only=True):
    """DPO on pairs of the policy's own fresh responses, ordered by a score."""

    learning_rate: NonNegative = 5e-7
    temperature: Positive = 0.9
    epochs: Count = 1
    """Passes over the pairs of one update."""
    kl_coef: Positive = 0.1
    """As in `DPOSettings`."""
    label_smoothing: Smoothing = 0.0


class BestOfNSettings(SamplingSettings, frozen=True, kw_only=True):
    """Rejection fine-tuning: of several responses to each prompt the best one is taught."""

    updates: Count = 1
    learning_rate: NonNegative = 1e-5
    candidates: Several = 4
    """Responses sampled for each prompt, `rollouts` in all. More cost more and climb slower: the KL of the best of N
    is at most log N - (N - 1) / N."""
    epochs: Count = 1
    """Passes over the best responses of one update."""
