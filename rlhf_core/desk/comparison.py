"""What each way of learning makes of the same judgements, on the desk: `make compare`.

For each seed, scripted people (rlhf_core/desk/raters.py) judge answers of the shipped policy: 400 pairs and 400 thumbs,
of which a stated share is wrong. Every method learns from these alone, with settings chosen once and fixed here; then
it answers held-out prompts, and the raters' true taste, without noise, says which share of its answers is good. The
reward model's scores play no part in that.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from rlhf_core.desk.demonstrations import DeskPrompt, held_out_prompts, training_prompts
from rlhf_core.desk.judgements import NOISE, PAIRS, SAMPLING, THUMBS, Judgements, answers_to, ask, collect, on_cpu, said
from rlhf_core.desk.raters import is_good
from rlhf_core.learning.alternatives_settings import (
    DPOSettings,
    KTOSettings,
    RLOOSettings,
)
from rlhf_core.learning.answer_logprobs import answer_kls
from rlhf_core.learning.baseline_policies import few_shot_prompts, train_on_upvoted
from rlhf_core.learning.best_of_n import best_answers, kl_bound
from rlhf_core.learning.dpo import train_dpo
from rlhf_core.learning.fresh_responses import Drawn, draw_responses
from rlhf_core.learning.kto import train_kto
from rlhf_core.learning.ppo import ScoreFunction, train_ppo
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.reward.evaluation import score
from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.learning.reward.training import train_reward_model
from rlhf_core.learning.rloo import train_rloo
from rlhf_core.learning.rollouts import SampledResponse
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.models.allocation import keep_freed_memory
from rlhf_core.models.load import DESK_CHECKPOINT, LoadedPolicy, load_policy
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Trainable, make_trainable
from rlhf_core.records import TokenIds
from rlhf_core.wilson import wilson_interval

PRACTICE_PROMPTS: Final = 800
"""Prompts that policies may practise on; nobody has judged an answer to most of them."""
HELD_OUT: Final = 300
CANDIDATES: Final = 4
SHOTS: Final = 3


class Result(NamedTuple):
    """One method with one seed."""

    good: int
    n: int
    kl: float
    """To the shipped policy, nats per answer; of best-of-N its bound; nan where other prompts were answered."""
    seconds: float
    """To learn; a reward model that was needed is counted with every method that needs it."""


@dataclass(frozen=True)
class Lesson:
    """What there is to learn from, for one seed."""

    seed: int
    judgements: Judgements
    practice: list[TokenIds]
    score_fn: ScoreFunction
    reward_seconds: float
    reward_accuracy: float


def learn_rewards(judgements: Judgements, seed: int) -> ScoreFunction:
    """The scores of a reward model that learned from these judgements."""
    reference = [(each.prompt_token_ids, each.token_ids) for each in judgements.ratings]
    trained = train_reward_model(
        DESK_CHECKPOINT, judgements.ratings, judgements.pairs, REWARD, seed, reference_answers=reference
    )

    def scores(prompts: Sequence[TokenIds], responses: Sequence[TokenIds]) -> Tensor:
        return score(trained.model, list(zip(prompts, responses, strict=True)))

    return scores


def _agreement(policy: LoadedPolicy, scores: ScoreFunction, seed: int) -> float:
    """Share of answers to unseen prompts, a good and a bad one to each, of which it scores the good one higher."""
    prompts = held_out_prompts(HELD_OUT // 2, seed + 303)
    answers = answers_to(policy, prompts, 2, seed + 2)
    given = scores([each.prompt for each in answers], [each.token_ids for each in answers])
    good = [is_good(prompts[at // 2], said(policy, each)) for at, each in enumerate(answers)]
    mixed = [at for at in range(0, len(answers), 2) if good[at] != good[at + 1]]
    right = sum((given[at] > given[at + 1]) == torch.tensor(good[at]) for at in mixed)
    return float(right) / max(1, len(mixed))


REWARD: Final = RewardSettings()
PPO: Final = PPOSettings(learning_rate=1e-3, epochs=4, target_kl=0.1, kl_coef=0.5, gae_lambda=1.0)
ADAPTERS: Final = dict.fromkeys(("PPO", "RLOO"), LoraSettings(rank=8, alpha=8.0))
"""What learns, where it is not all weights: noise moves a few numbers less far from the shipped policy than all of
them, and so more of the KL goes into better answers."""


def ppo(trainee: Trainable, lesson: Lesson) -> None:
    train_ppo(trainee, lesson.score_fn, lesson.practice, PPO, lesson.seed)


def rloo(trainee: Trainable, lesson: Lesson) -> None:
    settings = RLOOSettings(learning_rate=1e-3, epochs=4, target_kl=0.1, kl_coef=0.5)
    train_rloo(trainee, lesson.score_fn, lesson.practice, settings, lesson.seed)


def dpo(trainee: Trainable, lesson: Lesson) -> None:
    settings = DPOSettings(learning_rate=3e-4, epochs=2, minibatch_size=16)
    train_dpo(trainee, lesson.judgements.pairs, settings, lesson.seed)


def kto(trainee: Trainable, lesson: Lesson) -> None:
    settings = KTOSettings(learning_rate=3e-4, epochs=2, minibatch_size=16)
    train_kto(trainee, lesson.judgements.ratings, settings, lesson.seed)


def upvoted(trainee: Trainable, lesson: Lesson) -> None:
    settings = SftSettings(learning_rate=3e-4, epochs=2, rows_per_minibatch=2, seed=lesson.seed)
    train_on_upvoted(trainee, lesson.judgements.ratings, settings)


METHODS: Final[Mapping[str, Callable[[Trainable, Lesson], None]]] = {
    "PPO": ppo,
    "RLOO": rloo,
    "DPO": dpo,
    "KTO": kto,
    "fine-tuning on upvoted": upvoted,
}
CLIMBERS: Final = ("PPO", "RLOO")
"""Methods whose time includes that of the reward model."""


def take_lesson(policy: LoadedPolicy, seed: int) -> Lesson:
    judgements = collect(policy, seed)
    began = time.perf_counter()
    score_fn = learn_rewards(judgements, seed)
    seconds = time.perf_counter() - began
    practice = ask(policy, training_prompts(PRACTICE_PROMPTS, seed + 404))
    return Lesson(seed, judgements, practice, score_fn, seconds, _agreement(policy, score_fn, seed))


def play(policy: LoadedPolicy, lesson: Lesson, prompts: Sequence[DeskPrompt]) -> dict[str, Result]:
    """Every method once, from the same judgements, on the same held-out prompts."""
    asked = ask(policy, prompts)
    found = {"shipped policy": _judge(policy, prompts, _draw(policy, asked), 0.0, 0.0)}
    shown = few_shot_prompts(policy, lesson.judgements.ratings, asked, SHOTS, SAMPLING.max_new_tokens, lesson.seed)
    found["few-shot prompting"] = _judge(policy, prompts, _draw(policy, shown), float("nan"), 0.0)
    found["best of 4"] = _best_of(policy, lesson, prompts, asked)
    for name, learn in METHODS.items():
        trainee = make_trainable(load_policy(DESK_CHECKPOINT), ADAPTERS.get(name))
        began = time.perf_counter()
        learn(trainee, lesson)
        seconds = time.perf_counter() - began + (lesson.reward_seconds if name in CLIMBERS else 0.0)
        trainee.refresh()
        answers = _draw(trainee.policy, asked)
        kls = answer_kls(trainee, [(each.prompt, each.token_ids) for each in answers], SAMPLING, on_cpu())
        found[name] = _judge(policy, prompts, answers, float(kls.mean()), seconds)
    return found


def _draw(policy: LoadedPolicy, asked: Sequence[TokenIds]) -> list[SampledResponse]:
    return draw_responses(policy, asked, SAMPLING, 999, 0, on_cpu())


def _best_of(policy: LoadedPolicy, lesson: Lesson, prompts: Sequence[DeskPrompt], asked: Sequence[TokenIds]) -> Result:
    drawn = _draw(policy, [each for each in asked for _ in range(CANDIDATES)])
    scores = lesson.score_fn([each.prompt for each in drawn], [each.token_ids for each in drawn])
    kept = best_answers(Drawn(drawn, scores, scores), CANDIDATES)
    texts = [policy.tokenizer.decode(list(response), skip_special_tokens=True) for _, response in kept]
    good = sum(is_good(prompt, text) for prompt, text in zip(prompts, texts, strict=True))
    return Result(good, len(prompts), kl_bound(CANDIDATES), lesson.reward_seconds)


def _judge(
    policy: LoadedPolicy, prompts: Sequence[DeskPrompt], answers: Sequence[SampledResponse], kl: float, seconds: float
) -> Result:
    good = sum(is_good(prompt, said(policy, each)) for prompt, each in zip(prompts, answers, strict=True))
    return Result(good, len(prompts), kl, seconds)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m rlhf_core.desk.comparison", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="how often all of it is repeated. Default: 5")
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    policy = load_policy(DESK_CHECKPOINT, frozen=True)
    prompts = held_out_prompts(HELD_OUT, 7)
    print(
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads; {PAIRS} pairs, {THUMBS} thumbs, {NOISE:.0%} wrong"
    )
    results = []
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        lesson = take_lesson(policy, seed)
        print(f"\nseed {seed}: reward model in {lesson.reward_seconds:.0f} s, ", end="")
        print(f"tells a good answer from a bad one in {lesson.reward_accuracy:.1%} of unseen cases", flush=True)
        results.append(play(policy, lesson, prompts))
        print_table(results[-1])
    if len(results) > 1:
        print("\nall seeds")
        print_summary(results)
    return 0


def print_table(found: Mapping[str, Result]) -> None:
    print(f"{'method':<24}{'good answers (95 %)':<26}{'KL':>6}{'seconds':>9}")
    for name, each in found.items():
        low, high = wilson_interval(each.good, each.n)
        share = f"{each.good / each.n:.1%} ({low:.1%} to {high:.1%})"
        print(f"{name:<24}{share:<26}{each.kl:>6.2f}{each.seconds:>9.0f}", flush=True)


def print_summary(results: Sequence[Mapping[str, Result]]) -> None:
    print(f"{'method':<24}{'mean':>7}{'least':>7}{'most':>7}{'KL':>6}{'seconds':>9}")
    for name in results[0]:
        each = [found[name] for found in results]
        shares: list[Any] = [one.good / one.n for one in each]
        kl = sum(one.kl for one in each) / len(each)
        seconds = sum(one.seconds for one in each) / len(each)
        mean = sum(shares) / len(shares)
        print(f"{name:<24}{mean:>7.1%}{min(shares):>7.1%}{max(shares):>7.1%}{kl:>6.2f}{seconds:>9.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
