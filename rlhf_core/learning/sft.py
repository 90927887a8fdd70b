"""Supervised fine-tuning: teach a causal model the responses people demonstrated.

Contract: every assistant turn of a conversation is a target, its end token included; prompts are not
(unless the settings give prompts a weight); the loss is normalised by the weight of the whole minibatch over all
processes, so neither cutting it into microbatches nor sharing it out changes a gradient. Dropout stays off, so a
resumed run repeats to the bit and the trained model is the served one. Knows nothing of the desk, of checkpoints or
of logging: progress goes to hooks.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rlhf_core.errors import TrainingError
from rlhf_core.learning.conversations import Conversation, SftExample, encode_conversation, encode_conversations
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.packing import cut, pack_first_fit
from rlhf_core.learning.sft_loss import add_gradients
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.learning.training_state import capture, restore
from rlhf_core.models.documents import use_documents

__all__ = [
    "Conversation",
    "SftExample",
    "SftProgress",
    "SftResult",
    "encode_conversation",
    "encode_conversations",
    "train_supervised",
]

# Rows are packed within windows of this many shuffled examples: large enough to fill rows, small enough to stay
# shuffled.
PACKING_WINDOW = 512


@dataclass(frozen=True, slots=True)
class SftProgress:
    """What one optimizer step measured, before it changed the weights."""

    minibatch: int
    minibatches: int
    loss: float
    """Mean negative logprob of the response tokens, in nats; prompt tokens are not in it whatever their weight."""
    learning_rate: float
    gradient_norm: float
    tokens: int
    """Tokens read so far."""


@dataclass(frozen=True, slots=True)
class SftResult:
    """A finished run: the response loss of every minibatch, in order, and how much was read."""

    losses: tuple[float, ...]
    tokens: int


OnProgress = Callable[[SftProgress], None]


def train_supervised(
    model: PreTrainedModel,
    examples: Sequence[SftExample],
    settings: SftSettings,
    *,
    on_progress: OnProgress | None = None,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
) -> SftResult:
    """Train what is trainable of `model` in place on `examples` and return the curve.

    L = - sum_t w_t log pi(y_t | y_<t) / sum_t w_t over each minibatch (design/algorithms.md, 2.1), AdamW, linear
    warmup and cosine decay. `hooks` hears of every optimizer step and may resume an earlier run; `devices` shares
    each minibatch out. Raises TrainingError on the first loss or gradient that is not finite; the weights
    are then unchanged by that minibatch.
    """
    hooks, devices = hooks or Hooks(), devices or Devices(device=model.device.type)
    minibatches = plan_minibatches(examples, settings)
    optimizer = build_optimizer(model, settings)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses, tokens, start = list[float](), 0, 0
    if hooks.resume is not None:
        restore(hooks.resume, {"model": model}, optimizer)
        start, tokens = hooks.resume.step, int(hooks.resume.numbers["tokens"])
        losses = [float(loss) for loss in hooks.resume.numbers["losses"]]
    use_documents(model)
    model.eval()
    for at, rows in enumerate(minibatches[start:], start=start):
        began = time.perf_counter()
        learning_rate = settings.learning_rate * schedule_share(at, len(minibatches), settings.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss = accumulate_gradients(model, rows, settings, devices)
        norm = float(torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(f"minibatch {at}: loss {loss}, gradient norm {norm}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        read = sum(len(example.token_ids) for row in rows for example in row)
        tokens += read
        progress = SftProgress(at + 1, len(minibatches), loss, learning_rate, norm, tokens)
        hooks.log(_metrics(progress, read, time.perf_counter() - began))
        hooks.progress("fine-tuning", (at + 1) / len(minibatches))
        if on_progress is not None:
            on_progress(progress)
        if hooks.keeps(at + 1) and hooks.keep is not None:
            numbers = {"tokens": tokens, "losses": list(losses)}
            hooks.keep(capture(at + 1, {"model": model}, optimizer, numbers=numbers))
    return SftResult(tuple(losses), tokens)


def _metrics(progress: SftProgress, read: int, seconds: float) -> Metrics:
    return {
        "step": float(progress.minibatch),
        "loss": progress.loss,
        "learning_rate": progress.learning_rate,
        "grad_norm": progress.gradient_norm,
        "tokens": float(progress.tokens),
        "tokens_per_s": read / seconds,
        "time/step": seconds,
    }


def plan_minibatches(examples: Sequence[SftExample], settings: SftSettings) -> list[list[list[SftExample]]]:
    """Minibatches of rows of examples for the whole run, decided by `settings.seed` alone.

    Each epoch shuffles the examples, packs them window by window and shuffles the rows, so long ones do not
    travel together.
    """
    generator = torch.Generator().manual_seed(settings.seed)
    minibatches: list[list[list[SftExample]]] = []
    for _ in range(settings.epochs):
        rows = list(_packed_rows(examples, settings.row_tokens, generator))
        rows = [rows[at] for at in torch.randperm(len(rows), generator=generator).tolist()]
        size = settings.rows_per_minibatch
        minibatches += [rows[start : start + size] for start in range(0, len(rows), size)]
    return minibatches


def _packed_rows(
    examples: Sequence[SftExample], row_tokens: int, generator: torch.Generator
) -> Iterator[list[SftExample]]:
    order = torch.randperm(len(examples), generator=generator).tolist()
    for start in range(0, len(order), PACKING_WINDOW):
        window = [examples[at] for at in order[start : start + PACKING_WINDOW]]
        for row in pack_first_fit([len(example.token_ids) for example in window], row_tokens):
            yield [window[at] for at in row]


def accumulate_gradients(
    model: PreTrainedModel,
    rows: Sequence[Sequence[SftExample]],
    settings: SftSettings,
    devices: Devices | None = None,
) -> float:
    """Add the gradient of one minibatch's loss to the parameters, and return the loss: the mean negative logprob of
    its response tokens over all processes, in nats.

    The divisor is the weight of the whole minibatch, known before the first backward pass: a mean per microbatch
    would give tokens in sparse microbatches more say than others.
    """
    devices = devices or Devices(device=model.device.type)
    # Sorted, so that documents which attend side by side are of similar length.
    documents = sorted((each for row in rows for each in row), key=lambda each: len(each.token_ids))
    total_weight = sum(_weight(each, settings.prompt_weight) for each in documents)
    batches = cut(devices.share(documents), settings.rows_per_microbatch * settings.row_tokens)
    response_loss = add_gradients(model, batches, settings.prompt_weight, total_weight, devices)
    devices.sum_gradients(model.parameters())
    responses = sum(sum(each.response_mask[1:]) for each in documents)
    return devices.sum_numbers({"loss": response_loss})["loss"] / responses


def _weight(example: SftExample, prompt_weight: float) -> float:
    """The sum of an example's `target_weights`."""
    counted = sum(example.response_mask[1:])
    return counted + prompt_weight * (len(example.token_ids) - 1 - counted)


def schedule_share(minibatch: int, minibatches: int, warmup_share: float) -> float:
    """Share of the peak learning rate at a minibatch counted from 0: linear up, then half a cosine down towards 0."""
    warmup = math.ceil(minibatches * warmup_share)
    if minibatch < warmup:
        return (minibatch + 1) / warmup
    return 0.5 * (1.0 + math.cos(math.pi * (minibatch - warmup) / max(1, minibatches - warmup)))


def build_optimizer(model: PreTrainedModel, settings: SftSettings) -> torch.optim.AdamW:
    """AdamW over the trainable parameters, decaying matrices only."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, betas=settings.betas, eps=settings.adam_eps, fused=True)
