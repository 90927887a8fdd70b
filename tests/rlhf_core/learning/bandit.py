"""A one-layer Llama as a bandit: one prompt, one-token responses, and an optimum in closed form.

With rewards r and KL coefficient b the best policy is proportional to ref * exp(r / b); with b = .5 and a uniform
reference, to exp([2, 1, 0, -1]) / 11.4753.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import PreferencePair, RatedResponse
from rlhf_core.runs.proofs_training import uniform_policy

PROMPT = (0,)
ARMS = torch.tensor([1.0, 0.5, 0.0, -0.5])
KL_COEF = 0.5
OPTIMUM = torch.tensor([0.6439, 0.2369, 0.0871, 0.0321])
UNIFORM = torch.full((4,), 0.25)


def bandit_policy(tiny_policy: LoadedPolicy, start: Tensor = UNIFORM) -> LoadedPolicy:
    """A policy that answers PROMPT with one of four tokens, each of which ends, with probabilities `start`."""
    policy = uniform_policy(tiny_policy, 4)
    with torch.no_grad():
        hidden = policy.model.base_model(torch.tensor([PROMPT])).last_hidden_state[0, -1]
        policy.model.lm_head.weight.copy_(start.log()[:, None] * hidden / hidden.square().sum())
    return policy


@torch.no_grad()
def arm_probabilities(policy: LoadedPolicy) -> Tensor:
    """[4]."""
    return policy.model(torch.tensor([PROMPT])).logits[0, -1].softmax(-1)


def distance(left: Tensor, right: Tensor) -> float:
    """Total variation."""
    return float((left - right).abs().sum()) / 2


def arm_scores(prompts: Sequence[tuple[int, ...]], responses: Sequence[tuple[int, ...]]) -> Tensor:
    return ARMS[[response[0] for response in responses]]


def pair(
    chosen: Sequence[int], rejected: Sequence[int], prompt: Sequence[int] = PROMPT, **changes: object
) -> PreferencePair:
    fields = {
        "event_id": f"e{chosen}{rejected}",
        "rater": "ann",
        "comparison_id": "c",
        "policy_version": 1,
        "prompt_token_ids": tuple(prompt),
        "chosen_token_ids": tuple(chosen),
        "rejected_token_ids": tuple(rejected),
        "chosen_side": "left",
        "prompt_key": "",
    }
    return PreferencePair(**{**fields, **changes})


def thumb(response: Sequence[int], value: str, prompt: Sequence[int] = PROMPT) -> RatedResponse:
    return RatedResponse(
        event_id=f"e{response}{value}",
        rater="ann",
        interaction_id="i",
        policy_version=1,
        prompt_token_ids=tuple(prompt),
        token_ids=tuple(response),
        value=value,
        prompt_key="",
    )
