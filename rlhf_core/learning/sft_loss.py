"""The loss of supervised fine-tuning over batches of documents.

Logits are made only where a token counts, in chunks, so that a large vocabulary costs memory for no prompt.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from rlhf_core.errors import ModelError
from rlhf_core.learning.analyse import head_logprobs, require_plain_head
from rlhf_core.learning.conversations import SftExample
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.packing import PackedBatch
from rlhf_core.models.documents import document_inputs, run_documents


def add_gradients(
    model: PreTrainedModel,
    batches: Sequence[Sequence[SftExample]],
    prompt_weight: float,
    total_weight: float,
    devices: Devices,
) -> float:
    """Forward and backward over batches of examples; the loss is divided by `total_weight`.

    Returns the negative logprobs of response tokens, summed, in nats.
    """
    response_loss = 0.0
    for examples in batches:
        batch = PackedBatch.of(examples, model.device)
        weights = batch.weights(prompt_weight)
        wanted = weights > 0
        with devices.autocast():
            logprobs = wanted_logprobs(model, batch, wanted)
        torch.autograd.backward(-(logprobs * weights[wanted]).sum() / total_weight)
        response_loss -= float((logprobs.detach() * batch.response_mask[wanted]).sum())
    return response_loss


def next_token_logprobs(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Float32 logprob [N] of each target, given the tokens of its document before it."""
    logits = model(**document_inputs(model, batch.token_ids, batch.documents)).logits[0]
    return -functional.cross_entropy(logits.float(), batch.targets, reduction="none")


def wanted_logprobs(model: PreTrainedModel, batch: PackedBatch, wanted: Tensor) -> Tensor:
    """The entries of `next_token_logprobs` where `wanted` [N] is True.

    Only those positions reach the language-model head, in chunks, unless the model changes its logits after it.
    """
    if not _has_plain_head(model):
        return next_token_logprobs(model, batch)[wanted]
    hidden = run_documents(model.base_model, batch.token_ids, batch.documents, wanted.nonzero()[:, 0])
    head = model.get_output_embeddings()
    logprobs, _ = head_logprobs(head, hidden, batch.targets[wanted], 1.0, with_entropy=False)
    return logprobs


def _has_plain_head(model: PreTrainedModel) -> bool:
    try:
        require_plain_head(model)
    except ModelError:
        return False
    return True
