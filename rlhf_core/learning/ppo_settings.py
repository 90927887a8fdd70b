"""What can be turned in PPO. Free of torch, so a process that only passes it on can read it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from rlhf_core.errors import SettingsError

Count = Annotated[int, Meta(ge=1)]
Fraction = Annotated[float, Meta(ge=0.0, le=1.0)]
Positive = Annotated[float, Meta(gt=0.0)]
NonNegative = Annotated[float, Meta(ge=0.0)]


class PPOSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    """Tokens, padding included, of one forward and backward pass. Changes memory and speed, not the
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
    clip_range: Positive = 0.2
    """Probability ratios beyond 1 +- this earn nothing more."""
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
    score_clip: Positive = 5.0
    """Scores are clipped to +- this, in standard deviations of the reward model's reference samples."""
    temperature: Positive = 1.0
    """Of sampling, and so of every logprob. Sampling is never truncated (top_p, top_k): ratios would then be
    wrong."""
    grad_clip: Positive = 1.0
    """Gradient norms of policy and value head are each cut to this before an optimizer step."""
    critic_warmup_updates: Annotated[int, Meta(ge=0)] = 0
    """The first so many of `updates` fit the value head alone and leave the policy as it is."""

    def __post_init__(self) -> None:
        """Refuse, naming key and value, what is out of bounds: a struct made in code is otherwise
        unchecked."""
        for field in msgspec.structs.fields(type(self)):
            value = getattr(self, field.name)
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                raise SettingsError(f"PPO setting {field.name} is {value!r}: {error}") from None
