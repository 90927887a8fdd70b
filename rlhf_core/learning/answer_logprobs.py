"""How probable given responses are under a model that is not learning: for references, and for what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlhf_core.learning.alternatives_settings import StepSettings
from rlhf_core.learning.analyse import LOGITS_AT_ONCE, TokenBatch, analyse, response_states
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.rollouts import plan_microbatches
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import TokenIds

Answer = tuple[TokenIds, TokenIds]
"""A prompt and its response, neither empty."""


class ReadAnswer(NamedTuple):
    """One response as a model sees it, [r] each, on the CPU."""

    logprobs: Tensor
    entropy: Tensor
    """Zero where it was not asked for."""


def microbatches(
    lengths: Sequence[int], minibatch: Sequence[int], max_tokens: int, devices: Devices
) -> list[list[int]]:
    """This process's part of a minibatch of rows, cut into groups of similar length.

    What is read and what is trained on is cut here alike, so that the same rows in the same groups give the same
    numbers to the last bit, in any precision.
    """
    mine = devices.share(sorted(minibatch, key=lambda row: -lengths[row]))
    return plan_microbatches(lengths, mine, max_tokens)


@torch.no_grad()
def read_answers(
    model: PreTrainedModel,
    answers: Sequence[Answer],
    settings: StepSettings,
    devices: Devices,
    *,
    minibatches: Sequence[Sequence[int]] | None = None,
    with_entropy: bool = False,
) -> list[ReadAnswer]:
    """Each answer as `model` sees it, in the order given; the processes share the work and all get everything.

    `minibatches` say which rows will be trained on together; every row is in one. None: it does not matter.
    """
    lengths = [len(prompt) + len(response) for prompt, response in answers]
    read: list[tuple[int, ReadAnswer]] = []
    for minibatch in [range(len(answers))] if minibatches is None else minibatches:
        for group in microbatches(lengths, minibatch, settings.microbatch_tokens, devices):
            batch = TokenBatch.of([answers[at] for at in group], model.device)
            with devices.autocast():
                analysis = analyse(model, batch, temperature=settings.temperature, with_entropy=with_entropy)
            read += [(at, _row(analysis.logprobs, analysis.entropy, row, answers[at])) for row, at in enumerate(group)]
    everyone = dict(pair for part in devices.gather([read], devices.count) for pair in part)
    return [everyone[at] for at in range(len(answers))]


def answer_logprobs(
    model: PreTrainedModel, answers: Sequence[Answer], settings: StepSettings, devices: Devices
) -> Tensor:
    """Logprob [N] of each whole response, in nats, on the CPU."""
    read = read_answers(model, answers, settings, devices)
    return torch.stack([each.logprobs.sum() for each in read]) if read else torch.zeros(0)


@torch.no_grad()
def answer_kls(trainee: Trainable, answers: Sequence[Answer], settings: StepSettings, devices: Devices) -> Tensor:
    """KL(policy || reference) [N] in nats along each of the policy's own responses, on the CPU.

    At every token the whole next-token distributions are compared, not only the token that was drawn: unbiased as k1
    is, never negative, and of a fraction of its variance (Amini et al. 2504.10637). This process's answers alone.
    """
    kls = torch.zeros(len(answers))
    lengths = [len(prompt) + len(response) for prompt, response in answers]
    for group in plan_microbatches(lengths, range(len(answers)), settings.microbatch_tokens):
        batch = TokenBatch.of([answers[at] for at in group], trainee.model.device)
        with devices.autocast():
            tokens, rows = _token_kls(trainee, batch, settings.temperature)
        kls.index_add_(0, torch.tensor(group)[rows.cpu()], tokens.cpu())
    return kls


def _token_kls(trainee: Trainable, batch: TokenBatch, temperature: float) -> tuple[Tensor, Tensor]:
    """KL [T] at each of the T response tokens, and the row [T] of each. Logits exist in chunks, whatever T is."""
    ours = response_states(trainee.model, batch)
    with trainee.reference() as reference:
        theirs = response_states(reference, batch)
    chunk = max(1, LOGITS_AT_ONCE // trainee.policy.vocab_size)
    parts = []
    for own, other in zip(ours.hidden.split(chunk), theirs.hidden.split(chunk), strict=True):
        p = _log_distribution(trainee.model, own, temperature)
        with trainee.reference() as reference:
            q = _log_distribution(reference, other, temperature)
        parts.append((p.exp() * (p - q)).sum(-1))
    return torch.cat(parts), ours.places[0]


def _log_distribution(model: PreTrainedModel, hidden: Tensor, temperature: float) -> Tensor:
    """Log-probabilities [T, V] of what may follow each of the hidden states [T, D]."""
    logits: Tensor = model.get_output_embeddings()(hidden)
    return (logits.float() / temperature).log_softmax(-1)


def _row(logprobs: Tensor, entropy: Tensor, row: int, answer: Answer) -> ReadAnswer:
    size = len(answer[1])
    return ReadAnswer(logprobs[row, :size].float().cpu(), entropy[row, :size].float().cpu())
