"""The loss of supervised fine-tuning over batches of documents, packed or one to a row: the values are the same.

Logits are made only where a token counts, in chunks, so that a large vocabulary costs memory for no prompt.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.learning.analyse import head_logprobs, require_plain_head
from rlhf_core.learning.conversations import SftExample
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.packing import PackedBatch, collate, row_width


def add_gradients(
    model: PreTrainedModel,
    layout: Sequence[Sequence[Sequence[SftExample]]],
    prompt_weight: float,
    total_weight: float,
    pad_token_id: int,
    devices: Devices,
) -> tuple[float, int]:
    """Forward and backward over batches of rows of examples; the loss is divided by `total_weight`.

    Returns the negative logprobs of response tokens, summed, in nats, and the tokens computed with their padding.
    """
    response_loss, computed = 0.0, 0
    for rows in layout:
        batch = collate(rows, row_width(rows), pad_token_id).to(model.device)
        weights = target_weights(batch, prompt_weight)
        wanted = weights > 0
        with devices.autocast():
            logprobs = wanted_logprobs(model, batch, wanted)
        torch.autograd.backward(-(logprobs * weights[wanted]).sum() / total_weight)
        response_loss -= float((logprobs.detach() * batch.response_mask[:, 1:][wanted]).sum())
        computed += batch.input_ids.numel()
    return response_loss, computed


def next_token_logprobs(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Float32 logprob [B, T-1] of each token but the first, given the tokens of its document before it."""
    logits = model(**_inputs(model, batch)).logits
    targets = batch.input_ids[:, 1:]
    flat = functional.cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), reduction="none")
    return -flat.view_as(targets)


def wanted_logprobs(model: PreTrainedModel, batch: PackedBatch, wanted: Tensor) -> Tensor:
    """The N entries of `next_token_logprobs` where `wanted` [B, T-1] is True, in row order.

    Only those positions reach the language-model head, in chunks, unless the model changes its logits after it.
    """
    if not _has_plain_head(model):
        return next_token_logprobs(model, batch)[wanted]
    hidden = model.base_model(**_inputs(model, batch)).last_hidden_state[:, :-1][wanted]
    head = model.get_output_embeddings()
    logprobs, _ = head_logprobs(head, hidden, batch.input_ids[:, 1:][wanted], 1.0, with_entropy=False)
    return logprobs


def _inputs(model: PreTrainedModel, batch: PackedBatch) -> dict[str, object]:
    if batch.one_each:
        return {"input_ids": batch.input_ids, "use_cache": False}
    mask = batch.attention_mask(model.dtype)
    return {
        "input_ids": batch.input_ids,
        "position_ids": batch.position_ids,
        "attention_mask": mask,
        "use_cache": False,
    }


def _has_plain_head(model: PreTrainedModel) -> bool:
    try:
        require_plain_head(model)
    except ModelError:
        return False
    return True


def target_weights(batch: PackedBatch, prompt_weight: float) -> Tensor:
    """Loss weight [B, T-1] of each token but the first: 1 in a response, `prompt_weight` in a prompt, 0 for padding.

    A document's first token has weight 0 as well: what stands before it belongs to another document.
    """
    follows = batch.position_ids[:, 1:] > 0
    weights = torch.where(batch.response_mask[:, 1:], 1.0, prompt_weight)
    return weights * (follows & (batch.segment_ids[:, 1:] > 0))


def attention_cost(model: PreTrainedModel) -> float:
    """What a pair of tokens costs in attention, against what a token costs in the projections; see `lay_out`.

    A projection takes 2 operations per weight and token; scores and their use take 4 per pair, channel and layer.
    Infinite where some layer sees a window or keeps a state: the mask of a packed row would not say so.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention"} or getattr(config, "sliding_window", None):
        return math.inf
    embedding = model.get_input_embeddings().weight.numel()
    weights = sum(each.numel() for each in model.parameters()) - embedding
    if getattr(config, "tie_word_embeddings", False):
        weights += embedding
    return 4.0 * config.hidden_size * config.num_hidden_layers / (2.0 * weights)
