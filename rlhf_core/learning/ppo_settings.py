"""What can be turned in PPO. Free of torch, so a process that only passes it on can read it."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from rlhf_core.checked import Checked, Count, Fraction, NonNegative, Positive


class PPOSettings(Checked, frozen=True, kw_only=True):
    """Constants of one PPO cycle. The defaults train all weights of a small model."""

    updates: Count = 8
    """Rounds of sampling and learning."""
    rollouts: Count = 192
    """Responses sampled per update."""
    epochs: Count = 2
    """Passes over the rollouts of one update."""
    minibatch_size: Count = 64
    """Responses per optimizer step."""
    microbatch_tokens: Count = 1024
    """Tokens of one forward and backward pass, with what attention pads. Changes memory and speed, not the
    gradient."""
    sampler_slots: Count = 96
    """Responses that the engine decodes at once while sampling; each holds a slot of its KV cache."""
    learning_rate: NonNegative = 5e-5
    """AdamW's for the policy; falls linearly to 0 over the cycle. Too high and the KL to the reference runs
    away."""
    value_learning_rate: NonNegative = 1e-3
    """AdamW's for the value head, which starts from nothing and has a few dozen steps to become useful. Falls
    likewise."""
    value_coef: NonNegative = 0.1
    """Weight of the value loss in the trunk that value head and policy share. 0 trains the policy without a
    critic."""
    kl_coef: NonNegative = 0.05
    """Weight of the per-token KL penalty in the reward. Higher keeps the policy nearer to the reference."""
    kl_target: Positive | None = None
    """Nats per response that an adaptive `kl_coef` steers to. None keeps `kl_coef` fixed."""
    kl_horizon: Positive = 10_000.0
    """Responses over which the adaptive `kl_coef` may move by its largest relative step."""
    kl_budget: Positive = 10.0
    """The cycle stops as soon as sampled responses are this far from the reference, nats per response."""
    least_entropy: Fraction = 0.3
    """The cycle stops when the entropy per token is below this share of the first update's. 0: never."""
    least_end_rate: Fraction = 0.8
    """The cycle stops when fewer responses end. Of a policy that ends less often at first, this share of its own rate.
    0: never."""
    shortest: NonNegative = 0.5
    """The cycle stops when responses are shorter than this many times the reference's, on average. 0: never."""
    longest: Positive = 2.0
    """The same for longer ones. A huge number: never."""
    reference_length: Positive | None = None
    """Mean tokens of the reference's responses. None: those of the first update."""
    judge_drop: NonNegative = 0.25
    """With a judge, the cycle stops when its mean score is this far below its best while the score has risen."""
    clip_range: Positive = 0.2
    """Probability ratios beyond 1 +- this earn nothing more."""
    clip_range_high: Positive | None = None
    """Another range above 1, for rare good tokens to rise faster (clip-higher; .28 is usual). None: clip_range."""
    dual_clip: Annotated[float, Meta(gt=1.0)] | None = None
    """A bad token costs at most this many times its advantage, however much likelier it became. 3 is usual."""
    entropy_coef: NonNegative = 0.0
    """Weight of an entropy bonus, which keeps responses diverse."""
    value_clip_range: Positive = 0.2
    """The same for values, in units of the normalised score."""
    importance_cap: Positive = 2.0
    """Largest weight that corrects a token for the sampler's logprob differing from the trainer's."""
    gamma: Fraction = 1.0
    """Discount per token. Below 1, early tokens answer less for a score that comes at the end."""
    gae_lambda: Fraction = 0.95
    """1 trusts the sampled return alone, 0 the value head alone."""
    target_kl: Positive = 0.02
    """An update ends early when the policy has moved 1.5 times this from where it sampled, nats per token."""
    max_new_tokens: Count = 96
    """Longest response; one that reaches it without an end token did not end."""
    missing_end_penalty: NonNegative = 1.0
    """Taken off the score of a response that did not end."""
    missing_end: Literal["subtract", "replace"] = "subtract"
    """replace: a response that did not end scores minus the penalty, whatever it says."""
    score_clip: Positive = 5.0
    """Scores are clipped to +- this, in standard deviations of the reward model's reference samples."""
    whiten_rewards: bool = False
    """Scale the rewards of an update to unit variance, their mean kept. The KL penalty is scaled along."""
    whiten_floor: NonNegative = 1e-3
    """Advantages that differ less than this (standard deviation, in units of the score) are not blown up to differ by
    1."""
    axis_weights: dict[str, float] = {}
    """Scores of single axes that are added to the score, by name."""
    floor_axis: str | None = None
    """An axis whose mean score is held above `floor` by a Lagrange multiplier."""
    floor: float = 0.0
    """In units of that axis: 0 is the mean of the supervised policy's answers."""
    floor_rate: Positive = 0.1
    """What the multiplier gains per update and unit of violation. Higher reacts faster and swings more."""
    demonstration_coef: NonNegative = 0.0
    """Weight of the loss on demonstrations in each optimizer step (InstructGPT's ptx), per token. .05 to .1 is
    usual."""
    temperature: Positive = 1.0
    """Of sampling, and so of every logprob. Sampling is never truncated (top_p, top_k): ratios would then be
    wrong."""
    grad_clip: Positive = 1.0
    """Gradient norms of policy and value head are each cut to this before an optimizer step."""
    critic_warmup_updates: Annotated[int, Meta(ge=0)] = 0
    """The first so many of `updates` fit the value head alone and leave the policy as it is."""

    @property
    def axes(self) -> list[str]:
        """The axes whose scores are needed, in order of their names."""
        return sorted({*self.axis_weights, *([self.floor_axis] if self.floor_axis else [])})
