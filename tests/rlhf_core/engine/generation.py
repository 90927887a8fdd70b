"""The two sides that check each other: the engine under random traffic, and transformers one prompt at a time."""

from __future__ import annotations

import random
from typing import Any

import torch

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest, Sequence
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import Sampling


def engine(policy: LoadedPolicy, **options: Any) -> Engine:
    return Engine(policy, **{"max_running": 4, "max_waiting": 100, "max_context": 128, **options})


def prompt(dice: random.Random, longest: int = 40) -> tuple[int, ...]:
    return tuple(dice.randrange(5, 300) for _ in range(dice.randint(1, longest)))


def request(name: str, prompt_token_ids: tuple[int, ...], **options: Any) -> GenerationRequest:
    sampling = Sampling(**{"temperature": 0.0, "max_tokens": 12, **options})
    return GenerationRequest(name, prompt_token_ids, sampling)


def alone(policy: LoadedPolicy, sequence: Sequence) -> list[int]:
    """What transformers' own greedy generation answers to the same prompt."""
    prompt_token_ids = sequence.request.prompt_token_ids
    generated = policy.model.generate(
        torch.tensor([prompt_token_ids], device=policy.model.device),
        attention_mask=torch.ones(1, len(prompt_token_ids), dtype=torch.long, device=policy.model.device),
        max_new_tokens=sequence.max_tokens,
        do_sample=False,
    )
    return [int(token_id) for token_id in generated[0, len(prompt_token_ids) :]]


def plain_logits(policy: LoadedPolicy, sequence: Sequence) -> torch.Tensor:
    """[R, V] logits of an ordinary forward at the positions that drew the response."""
    token_ids = [*sequence.request.prompt_token_ids, *sequence.token_ids]
    with torch.no_grad():
        logits: torch.Tensor = policy.model(torch.tensor([token_ids])).logits[0]
    return logits[len(sequence.request.prompt_token_ids) - 1 : -1].float()


def play(subject: Engine, requests: list[GenerationRequest], dice: random.Random) -> list[Sequence]:
    """Requests arrive at random, and one in six is aborted at some time; returns those that finished."""
    waiting = list(requests)
    sequences: list[Sequence] = []
    while waiting or subject.has_work:
        for _ in range(dice.choice([0, 0, 1, 3])):
            if waiting:
                sequences.append(subject.submit(waiting.pop()))
        subject.step()
        if sequences and dice.random() < 0.1:
            subject.abort(dice.choice(sequences).request.request_id)
    return [sequence for sequence in sequences if sequence.status == "finished"]
