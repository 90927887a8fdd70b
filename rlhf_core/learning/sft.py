"""Supervised fine-tuning: teach a causal model the responses people demonstrated.

Contract: every assistant turn of a conversation is a target, its end token included; padding and prompts are not
(unless the settings give prompts a weight); the loss is normalised by the weight of the whole accumulation
window, so cutting a minibatch into microbatches changes no gradient. Knows nothing of the desk, of checkpoints or
of logging: progress goes to a callback.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.errors import TrainingError
from rlhf_core.learning.packing import PackedBatch, collate, pack_first_fit
from rlhf_core.learning.sft_settings import SftSettings

# Rows are packed within windows of this many shuffled examples: large enough to fill rows, small enough to stay
# shuffled.
PACKING_WINDOW = 512

Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class SftExample:
    """One tokenised conversation; `response_mask` is True on every assistant token, end tokens included."""

    token_ids: tuple[int, ...]
    response_mask: tuple[bool, ...]


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
    """Tokens read so far, padding not counted."""


@dataclass(frozen=True, slots=True)
class SftResult:
    """A finished run: the response loss of every minibatch, in order, and how much was read."""

    losses: tuple[float, ...]
    tokens: int


OnProgress = Callable[[SftProgress], None]


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> SftExample:
    """Tokenise a conversation and mark its assistant turns, by rendering growing prefixes with the chat template.

    A prefix's token ids must begin the longer one's; a template or tokenizer for which that fails would train on
    tokens the served model never sees, so TrainingError names the turn. Conversations without an assistant turn
    are refused too.
    """
    return encode_conversations(tokenizer, [messages])[0]


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[SftExample]:
    """`encode_conversation` for many at once: one call of the tokenizer for all prefixes, which is much faster."""
    texts = [text for messages in conversations for text in _prefixes(tokenizer, messages)]
    encoded = iter(tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]) if texts else iter(())
    return [_mark_responses(messages, encoded) for messages in conversations]


def _prefixes(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> Iterator[str]:
    """For each assistant turn the text up to where it starts, and up to where it ends."""
    turns = [dict(message) for message in messages]
    for at in _assistant_turns(messages):
        yield str(tokenizer.apply_chat_template(turns[:at], tokenize=False, add_generation_prompt=True))
        yield str(tokenizer.apply_chat_template(turns[: at + 1], tokenize=False))


def _assistant_turns(messages: Conversation) -> list[int]:
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise TrainingError("a conversation without an assistant turn teaches nothing")
    return turns


def _mark_responses(messages: Conversation, encoded: Iterator[list[int]]) -> SftExample:
    token_ids: list[int] = []
    response_mask: list[bool] = []
    for at in _assistant_turns(messages):
        prompt, whole = next(encoded), next(encoded)
        if prompt[: len(token_ids)] != token_ids or whole[: len(prompt)] != prompt:
            raise TrainingError(f"turn {at}: the template's tokens before it do not begin the tokens with it")
        response_mask += [False] * (len(prompt) - len(token_ids)) + [True] * (len(whole) - len(prompt))
        token_ids = whole
    return SftExample(tuple(token_ids), tuple(response_mask))


def next_token_logprobs(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Float32 logprob [B, T-1] of each token but the first, given the tokens of its document before it."""
    logits = model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        attention_mask=batch.attention_mask(model.dtype),
        use_cache=False,
    ).logits
    targets = batch.input_ids[:, 1:]
    flat = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
    return -flat.view_as(targets)


def target_weights(batch: PackedBatch, prompt_weight: float) -> Tensor:
    """Loss weight [B, T-1] of each token but the first: 1 in a response, `prompt_weight` in a prompt, 0 for padding.

    A document's first token has weight 0 as well: what stands before it belongs to another document.
    """
    follows = batch.position_ids[:, 1:] > 0
    weights = torch.where(batch.response_mask[:, 1:], 1.0, prompt_weight)
    return weights * (follows & (batch.segment_ids[:, 1:] > 0))


def train_supervised(
    model: PreTrainedModel,
    examples: Sequence[SftExample],
    settings: SftSettings,
    *,
    pad_token_id: int,
    on_progress: OnProgress | None = None,
) -> SftResult:
    """Train `model` in place on `examples` and return the curve.

    L = - sum_t w_t log pi(y_t | y_<t) / sum_t w_t over each minibatch (design/algorithms.md, 2.1), AdamW, linear
    warmup and cosine decay. Raises TrainingError on the first loss or gradient that is not finite; the weights
    are then unchanged by that minibatch.
    """
    minibatches = plan_minibatches(examples, settings)
    optimizer = build_optimizer(model, settings)
    losses: list[float] = []
    tokens = 0
    model.train()
    for at, rows in enumerate(minibatches):
        learning_rate = settings.learning_rate * schedule_share(at, len(minibatches), settings.warmup_share)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        loss = accumulate_gradients(model, rows, settings, pad_token_id)
        norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise TrainingError(f"minibatch {at}: loss {loss}, gradient norm {norm}")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
        tokens += sum(len(example.token_ids) for row in rows for example in row)
        if on_progress is not None:
            on_progress(SftProgress(at + 1, len(minibatches), loss, learning_rate, norm, tokens))
    model.train(False)
    return SftResult(tuple(losses), tokens)


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
    model: PreTrainedModel, rows: Sequence[Sequence[SftExample]], settings: SftSettings, pad_token_id: int
) -> float:
    """Add the gradient of one minibatch's loss to the parameters and return the mean response loss in nats.

    The divisor is the weight of the whole minibatch, known before the first backward pass: a mean per microbatch
    would give tokens in sparse microbatches more say than others.
    """
    size = settings.rows_per_microbatch
    parts = [rows[start : start + size] for start in range(0, len(rows), size)]
    batches = [collate(part, settings.row_tokens, pad_token_id).to(model.device) for part in parts]
    total_weight = sum(float(target_weights(batch, settings.prompt_weight).sum()) for batch in batches)
    responses = sum(int(batch.response_mask.sum()) for batch in batches)
    response_loss = 0.0
    for batch in batches:
        logprobs = next_token_logprobs(model, batch)
        loss = -(logprobs * target_weights(batch, settings.prompt_weight)).sum() / total_weight
        torch.autograd.backward(loss)
        response_loss -= float((logprobs.detach() * batch.response_mask[:, 1:]).sum())
    return response_loss / responses


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
