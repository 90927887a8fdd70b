"""The choice of what trains the policy: one setting, and what each algorithm reads of the others.

All of them get the same judgements, reward model and prompts, use what they can, and leave a policy for the same gate.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import msgspec

from rlhf_core.learning.alternatives_settings import (
    GRPO,
    BestOfNSettings,
    DPOSettings,
    KTOSettings,
    OnlineDPOSettings,
    RLOOSettings,
)
from rlhf_core.learning.best_of_n import train_best_of_n
from rlhf_core.learning.dpo import train_dpo
from rlhf_core.learning.hooks import Hooks, Metrics
from rlhf_core.learning.kto import train_kto
from rlhf_core.learning.online_dpo import train_online_dpo
from rlhf_core.learning.ppo import PPOSettings, ScoreFunction, train_ppo
from rlhf_core.learning.rloo import train_rloo
from rlhf_core.models.trainable import Trainable
from rlhf_core.records import PreferencePair, RatedResponse, TokenIds
from rlhf_core.settings import Settings

log = logging.getLogger(__name__)

PREFERENCE_BATCH = 16
"""Judgements per optimizer step of dpo and kto: a few hundred judgements make a few dozen steps."""


class Material(NamedTuple):
    """What a policy can learn from, of the training split alone."""

    score_fn: ScoreFunction
    prompts: list[TokenIds]
    ratings: list[RatedResponse]
    pairs: list[PreferencePair]


def starts_anew(algorithm: str) -> bool:
    """Whether a training starts from the supervised policy, not from the live one.

    What learns from all judgements that stand does, as the reward model: a judgement withdrawn leaves no trace.
    """
    return algorithm in ("dpo", "kto")


def train_policy_by(settings: Settings, trainee: Trainable, material: Material, seed: int, hooks: Hooks) -> Metrics:
    """Train `trainee` by `settings.algorithm` and return the metrics of the last update, if there was one."""
    score_fn, prompts = material.score_fn, material.prompts
    match settings.algorithm:
        case "ppo":
            result = train_ppo(trainee, score_fn, prompts, ppo_settings(settings), seed, hooks=hooks)
            if result.stopped:
                log.info("PPO stopped early: %s", result.stopped)
            history = result.metrics
        case "rloo":
            history = train_rloo(trainee, score_fn, prompts, rloo_settings(settings), seed, hooks)
        case "grpo":
            history = train_rloo(trainee, score_fn, prompts, grpo_settings(settings), seed, hooks)
        case "online_dpo":
            history = train_online_dpo(trainee, score_fn, prompts, online_dpo_settings(settings), seed, hooks)
        case "best_of_n":
            history = train_best_of_n(trainee, score_fn, prompts, best_of_n_settings(settings), seed, hooks)
        case "dpo":
            history = train_dpo(trainee, material.pairs, dpo_settings(settings), seed, hooks)
        case "kto":
            history = train_kto(trainee, material.ratings, kto_settings(settings), seed, hooks)
    return history[-1] if history else {}


def ppo_settings(settings: Settings) -> PPOSettings:
    return PPOSettings(
        **_cycle(settings),
        rollouts=settings.ppo_rollouts,
        epochs=settings.ppo_epochs,
        minibatch_size=settings.ppo_minibatch_size,
        learning_rate=settings.ppo_learning_rate,
        value_coef=settings.ppo_value_coef,
        kl_coef=settings.ppo_kl_coef,
        clip_range=settings.ppo_clip_range,
        value_clip_range=settings.ppo_value_clip_range,
        gamma=settings.ppo_gamma,
        gae_lambda=settings.ppo_gae_lambda,
        target_kl=settings.ppo_target_kl,
    )


def rloo_settings(settings: Settings) -> RLOOSettings:
    return RLOOSettings(
        **_cycle(settings),
        **_grouped(settings, settings.group_size),
        group_size=settings.group_size,
        epochs=settings.ppo_epochs,
        learning_rate=settings.ppo_learning_rate,
        kl_coef=settings.ppo_kl_coef,
        clip_range=settings.ppo_clip_range,
        clip_range_high=settings.ppo_clip_range,
        target_kl=settings.ppo_target_kl,
    )


def grpo_settings(settings: Settings) -> RLOOSettings:
    """RLOO's, with GRPO's baseline, ratio, upper clip and place of the KL."""
    return msgspec.structs.replace(
        rloo_settings(settings),
        baseline=GRPO.baseline,
        ratio=GRPO.ratio,
        clip_range_high=max(settings.ppo_clip_range, GRPO.clip_range_high),
        kl_in=GRPO.kl_in,
    )


def online_dpo_settings(settings: Settings) -> OnlineDPOSettings:
    return OnlineDPOSettings(
        **_cycle(settings),
        **_grouped(settings, 2),
        learning_rate=settings.preference_learning_rate,
        kl_coef=settings.preference_kl_coef,
    )


def best_of_n_settings(settings: Settings) -> BestOfNSettings:
    return BestOfNSettings(
        **_cycle(settings),
        **_grouped(settings, settings.group_size),
        candidates=settings.group_size,
        epochs=settings.ppo_epochs,
        learning_rate=settings.ppo_learning_rate,
    )


def dpo_settings(settings: Settings) -> DPOSettings:
    return DPOSettings(**_judged(settings))


def kto_settings(settings: Settings) -> KTOSettings:
    return KTOSettings(**_judged(settings))


def _cycle(settings: Settings) -> dict[str, Any]:
    """What everything that samples shares."""
    return {
        "updates": settings.ppo_updates,
        "kl_budget": settings.gate_kl_budget,
        "max_new_tokens": settings.ppo_max_new_tokens,
        "missing_end_penalty": settings.ppo_missing_end_penalty,
    }


def _grouped(settings: Settings, responses: int) -> dict[str, Any]:
    """Rollouts for at least one prompt with so many `responses`, and minibatches that can compare."""
    return {
        "rollouts": max(settings.ppo_rollouts, responses),
        "minibatch_size": max(settings.ppo_minibatch_size, 2),
    }


def _judged(settings: Settings) -> dict[str, Any]:
    """What everything that learns from judgements themselves shares."""
    return {
        "epochs": settings.preference_epochs,
        "minibatch_size": PREFERENCE_BATCH,
        "learning_rate": settings.preference_learning_rate,
        "kl_coef": settings.preference_kl_coef,
    }
