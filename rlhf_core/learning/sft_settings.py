"""What can be turned in supervised fine-tuning. Free of torch, so a recipe or a process that only passes it on
can read it."""

from rlhf_core.checked import Checked, Count, Fraction, Positive


class SftSettings(Checked, frozen=True, kw_only=True):
    """Constants of one supervised run. The defaults fine-tune an existing model with full weights."""

    learning_rate: Positive = 1e-5
    """Peak of the schedule. About 1e-5 for full weights, 1e-4 for LoRA, 1e-3 when a small model starts from
    nothing."""
    warmup_share: Fraction = 0.03
    """Share of the minibatches over which the learning rate climbs from zero; a cosine down to zero follows."""
    weight_decay: float = 0.01
    """Decoupled decay (AdamW) of matrices; gains and biases are never decayed."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of AdamW's two moments. A short run wants a second moment that forgets within twenty minibatches."""
    adam_eps: Positive = 1e-5
    """Added to AdamW's divisor; larger values damp rarely seen tokens."""
    clip_norm: Positive = 1.0
    """The gradient's norm is cut to this before each optimizer step."""
    epochs: Count = 1
    """Passes over the examples. A second pass rarely helps on demonstrations written by people."""
    row_tokens: Count = 512
    """Length of one packed row. An example longer than this is refused, never cut: a cut example has no end token."""
    rows_per_minibatch: Count = 16
    """Packed rows behind one optimizer step: the accumulation window over which the loss is normalised."""
    rows_per_microbatch: Count = 16
    """Packed rows in one backward pass. Changes memory and speed, not the gradient."""
    prompt_weight: Fraction = 0.0
    """Weight of a prompt token's loss against a response token's 1. Zero when the model already knows the
    language. From scratch a little of it (0.1 to 0.3) also teaches how people write, which is what later answers
    are read off from."""
    seed: int = 0
    """Orders the examples."""
