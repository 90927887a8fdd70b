"""Measures a candidate against the live policy, and asks the rules (`gate_rules.py`) whether it may be
published.

Both policies answer the same held-out prompts with the same seeds, through the engine that serves. The judge
is a reward model that the candidate was not trained against: another seed, other people's prompts. Nothing
here touches the store or the live pointer; publishing an accepted candidate is the caller's act.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.gate_rules import GateNumbers, GateSettings, decide
from rlhf_core.learning.analyse import TokenBatch, analyse
from rlhf_core.learning.reward.evaluation import evaluate, score
from rlhf_core.learning.rollouts import SampledResponse, plan_microbatches
from rlhf_core.models.heads import RewardModel
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import GateReport, PreferencePair, RatedResponse, Sampling, TokenIds

RUN_TOKENS = 4
"""An answer repeats itself when a run of this many tokens ..."""
MOST_REPEATS = 2
"""... occurs more often than this."""
TOKENS_TOGETHER = 4096
"""Tokens per forward pass of the reference policy."""
SAME_SCORE = 1e-5
"""Scores closer than this are a tie: the order of a sum alone moves them so far."""


class Contest(NamedTuple):
    """Candidate against live, prompt by prompt."""

    wins: float
    """Ties count half."""
    ties: int


def evaluate_candidate(
    candidate: LoadedPolicy,
    live: LoadedPolicy,
    reference: LoadedPolicy,
    reward: RewardModel,
    judge: RewardModel,
    prompts: Sequence[TokenIds],
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    settings: GateSettings,
    *,
    now: float,
) -> GateReport:
    """Answer, score, compare and decide. `prompts` (token ids), `ratings` and `pairs` are of the gate's own
    split.

    The report names `candidate.checkpoint_id` and the live policy's version. With too few prompts or
    judgements it rejects; it never raises for want of evidence.
    """
    numbers = measure_candidate(candidate, live, reference, reward, judge, prompts, ratings, pairs, settings)
    return decide(numbers, settings, checkpoint_id=candidate.checkpoint_id, parent_version=live.policy_version, now=now)


def measure_candidate(
    candidate: LoadedPolicy,
    live: LoadedPolicy,
    reference: LoadedPolicy,
    reward: RewardModel,
    judge: RewardModel,
    prompts: Sequence[TokenIds],
    ratings: Sequence[RatedResponse],
    pairs: Sequence[PreferencePair],
    settings: GateSettings,
) -> GateNumbers:
    """All numbers of one decision. The same policies, prompts and seed give the same numbers."""
    climbed, judging = (evaluate(model, ratings, pairs) for model in (reward, judge))
    ours, theirs = (answer(policy, prompts, settings) for policy in (candidate, live))
    our_scores, their_scores = (score(judge, [(one.prompt, one.token_ids) for one in each]) for each in (ours, theirs))
    contest = count_wins(ours, theirs, our_scores, their_scores)
    return GateNumbers(
        reward_accuracy=climbed.accuracy,
        length_accuracy=climbed.length_accuracy,
        majority_accuracy=climbed.majority_accuracy,
        judge_accuracy=judging.accuracy,
        judge_length_accuracy=judging.length_accuracy,
        feedback=climbed.n,
        wins=contest.wins,
        ties=contest.ties,
        prompts=len(prompts),
        ref_kl=mean_ref_kl(ours, reference, settings.temperature),
        end_rate=mean(one.ended for one in ours),
        live_end_rate=mean(one.ended for one in theirs),
        repetition=mean(repeats_itself(one.token_ids) for one in ours),
        live_repetition=mean(repeats_itself(one.token_ids) for one in theirs),
        length=mean(len(one.token_ids) for one in ours),
        live_length=mean(len(one.token_ids) for one in theirs),
        score=mean(our_scores.tolist()),
        live_score=mean(their_scores.tolist()),
    )


def answer(policy: LoadedPolicy, prompts: Sequence[TokenIds], settings: GateSettings) -> list[SampledResponse]:
    """One sampled answer per prompt; the i-th has a seed of its own, which nothing else in the batch can
    shift.
    """
    if not prompts:
        return []
    engine = Engine(policy, max_running=settings.max_running, max_waiting=len(prompts), max_context=policy.max_context)
    requests = [
        GenerationRequest(
            request_id=f"gate-{at}",
            prompt_token_ids=prompt,
            sampling=Sampling(
                temperature=settings.temperature, max_tokens=settings.max_new_tokens, seed=settings.seed + at
            ),
            decode_text=False,
        )
        for at, prompt in enumerate(prompts)
    ]
    return [
        SampledResponse(prompt, tuple(one.token_ids), tuple(one.logprobs), one.finish_reason == "stop")
        for prompt, one in zip(prompts, engine.generate(requests), strict=True)
    ]


def count_wins(
    ours: Sequence[SampledResponse],
    theirs: Sequence[SampledResponse],
    our_scores: Tensor,
    their_scores: Tensor,
) -> Contest:
    """Who answered better, by scores [B] of the same prompts. The same answer twice is a tie whatever its
    scores.
    """
    same = torch.tensor([left.token_ids == right.token_ids for left, right in zip(ours, theirs, strict=True)])
    tied = same.bool() | ((our_scores - their_scores).abs() < SAME_SCORE)
    won = (our_scores > their_scores) & ~tied
    ties = int(tied.sum())
    return Contest(wins=int(won.sum()) + ties / 2, ties=ties)


@torch.inference_mode()
def mean_ref_kl(answers: Sequence[SampledResponse], reference: LoadedPolicy, temperature: float) -> float:
    """Estimate of KL(candidate, reference) in nats per response: the mean over the candidate's own answers of

    sum_t logp_candidate(y_t) - logp_reference(y_t). Unbiased, so a small KL can come out slightly below zero.
    """
    lengths = [one.length for one in answers]
    total = 0.0
    for group in plan_microbatches(lengths, range(len(answers)), TOKENS_TOGETHER):
        rows = [answers[at] for at in group]
        batch = TokenBatch.of([(one.prompt, one.token_ids) for one in rows], reference.model.device)
        ref_logprobs = analyse(reference.model, batch, temperature=temperature).logprobs
        total += sum(sum(one.logprobs) for one in rows) - float(ref_logprobs.double().sum())
    return total / len(answers) if answers else 0.0


def repeats_itself(token_ids: Sequence[int]) -> bool:
    """Whether a run of RUN_TOKENS tokens occurs more than MOST_REPEATS times."""
    runs = Counter(tuple(token_ids[at : at + RUN_TOKENS]) for at in range(len(token_ids) - RUN_TOKENS + 1))
    return max(runs.values(), default=0) > MOST_REPEATS


def mean(values: Iterable[float]) -> float:
    """0 for no values: an unmeasured candidate is rejected by the count of prompts, not by a crash."""
    each = [float(value) for value in values]
    return sum(each) / len(each) if each else 0.0
