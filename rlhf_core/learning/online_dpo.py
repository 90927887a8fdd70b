"""Online DPO: the policy answers twice, a score says which answer is better, and a DPO step follows.

Contract: as in `dpo.py`, but the pairs are the policy's own, drawn anew in every update, so they never grow stale.
Source: Guo et al. 2402.04792.
"""

from __future__ import annotations

from collections.abc import Sequence

from rlhf_core.learning.alternatives_settings import OnlineDPOSettings
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.dpo import PairLearner, ReferredPair, mean_metrics
from rlhf_core.learning.fresh_responses import FreshResponses, Source, run_updates
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.policy_steps import PolicySteps, alone, linear_share, shuffled_minibatches
from rlhf_core.learning.ppo import ScoreFunction
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import TokenIds

SAME_SCORE = 1e-5
"""Scores closer than this order nothing: the order of a sum alone moves them so far."""


def train_online_dpo(
    trainee: Trainable,
    score_fn: ScoreFunction,
    prompts: Sequence[TokenIds],
    settings: OnlineDPOSettings,
    seed: int,
    hooks: Hooks | None = None,
    devices: Devices | None = None,
) -> list[Metrics]:
    """Train for `settings.updates` rounds of sampling and learning, and return the metrics of every update.

    `prompts` are token ids up to where the response begins. The same arguments give the same weights and metrics, times
    aside. Fewer updates when the KL budget ends the training. Raises TrainingError when there is no prompt, or a number
    is not finite.
    """
    hooks, devices = hooks or Hooks(), devices or alone(trainee)
    source = Source(trainee, score_fn, prompts, settings, seed, devices)
    learner = PairLearner(settings, PolicySteps(trainee, settings, devices))

    def draw(update: int) -> FreshResponses:
        return source.read(source.draw(update, 2))

    def learn(fresh: FreshResponses, update: int) -> Metrics:
        share = linear_share(update, settings.updates, settings.warmup_share)
        pairs = ordered_pairs(fresh)
        minibatches = shuffled_minibatches(pairs, settings.minibatch_size, settings.epochs, seed + update)
        learned = mean_metrics([learner.improve(each, share) for each in minibatches])
        return learned | {"rollout/pairs": float(len(pairs))}

    return run_updates(learner.steps, settings, hooks, draw, learn)


def ordered_pairs(fresh: FreshResponses) -> list[ReferredPair]:
    """The pairs of responses that the score orders; twice the same answer, or the same score, orders nothing."""
    pairs = []
    scores, responses = fresh.drawn.shaped_scores.tolist(), fresh.drawn.responses
    for first in range(0, len(responses), 2):
        left, right = first, first + 1
        alike = responses[left].token_ids == responses[right].token_ids
        if alike or abs(scores[left] - scores[right]) < SAME_SCORE:
            continue
        best, worst = (left, right) if scores[left] > scores[right] else (right, left)
        pairs.append(
            ReferredPair(
                responses[best].prompt,
                responses[best].token_ids,
                responses[worst].token_ids,
                float(fresh.ref_logprobs[best].sum()),
                float(fresh.ref_logprobs[worst].sum()),
            )
        )
    return pairs
