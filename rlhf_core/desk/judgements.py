"""Judgements of the desk's scripted people on answers of the shipped policy: what `make compare` learns from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, NamedTuple

from rlhf_core.desk.demonstrations import DeskPrompt, training_prompts
from rlhf_core.desk.raters import Rater
from rlhf_core.learning.alternatives_settings import SamplingSettings
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.fresh_responses import draw_responses
from rlhf_core.learning.rollouts import SampledResponse
from rlhf_core.models.load import LoadedPolicy, render_prompt
from rlhf_core.preferences import prompt_key
from rlhf_core.records import PreferencePair, RatedResponse, Side, TokenIds

PAIRS, THUMBS = 400, 400
NOISE: Final = 0.15
RATERS: Final = 20
SAMPLING: Final = SamplingSettings(max_new_tokens=96)


class Judgements(NamedTuple):
    ratings: list[RatedResponse]
    pairs: list[PreferencePair]


def ask(policy: LoadedPolicy, prompts: Sequence[DeskPrompt]) -> list[TokenIds]:
    return [tuple(render_prompt(policy.tokenizer, prompt.messages)) for prompt in prompts]


def said(policy: LoadedPolicy, response: SampledResponse) -> str:
    """What a rater reads."""
    return str(policy.tokenizer.decode(list(response.token_ids), skip_special_tokens=True))


def on_cpu() -> Devices:
    return Devices(device="cpu")


def collect(policy: LoadedPolicy, seed: int) -> Judgements:
    """Judgements of answers that `policy` gave to training prompts, by people who err in NOISE of the cases."""
    raters = [Rater(1000 * seed + number, NOISE) for number in range(RATERS)]
    draw = random.Random(seed)
    rated = training_prompts(THUMBS, seed + 101)
    ratings = [
        _rating(policy, prompt, response, raters, draw, at)
        for at, (prompt, response) in enumerate(zip(rated, answers_to(policy, rated, 1, seed), strict=True))
    ]
    compared = training_prompts(PAIRS, seed + 202)
    twice = answers_to(policy, compared, 2, seed + 1)
    pairs = [_pair(policy, prompt, twice[2 * at : 2 * at + 2], raters, draw, at) for at, prompt in enumerate(compared)]
    return Judgements(ratings, pairs)


def answers_to(policy: LoadedPolicy, prompts: Sequence[DeskPrompt], copies: int, seed: int) -> list[SampledResponse]:
    """`copies` answers to each prompt, one after the other."""
    asked = [token_ids for token_ids in ask(policy, prompts) for _ in range(copies)]
    return draw_responses(policy, asked, SAMPLING, seed, 0, on_cpu())


def _rating(
    policy: LoadedPolicy,
    prompt: DeskPrompt,
    response: SampledResponse,
    raters: Sequence[Rater],
    draw: random.Random,
    at: int,
) -> RatedResponse:
    who = draw.randrange(len(raters))
    judgement = raters[who].rate(prompt, said(policy, response))
    return RatedResponse(
        event_id=f"rating-{at}",
        rater=f"rater-{who}",
        interaction_id=f"interaction-{at}",
        policy_version=1,
        prompt_token_ids=response.prompt,
        token_ids=response.token_ids,
        value=judgement.value,
        prompt_key=prompt_key(prompt.messages),
        reasons=judgement.reasons,
    )


def _pair(
    policy: LoadedPolicy,
    prompt: DeskPrompt,
    answers: Sequence[SampledResponse],
    raters: Sequence[Rater],
    draw: random.Random,
    at: int,
) -> PreferencePair:
    """Two bad answers, and two that are equally good, are ties; a tie teaches as well."""
    left, right = answers
    who = draw.randrange(len(raters))
    choice = raters[who].choose(prompt, said(policy, left), said(policy, right))
    side: Side = "right" if choice == "right" else "left"
    chosen, rejected = (right, left) if side == "right" else (left, right)
    return PreferencePair(
        event_id=f"choice-{at}",
        rater=f"rater-{who}",
        comparison_id=f"comparison-{at}",
        policy_version=1,
        prompt_token_ids=left.prompt,
        chosen_token_ids=chosen.token_ids,
        rejected_token_ids=rejected.token_ids,
        chosen_side=side,
        prompt_key=prompt_key(prompt.messages),
        tie=choice in ("tie", "both_bad"),
    )
