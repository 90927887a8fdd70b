"""`attune rloo`: improve a policy with RLOO, or with `--grpo`, and say what best-of-N reaches at the same KL."""

from __future__ import annotations

import argparse
from typing import Any, Final

import msgspec

from rlhf_core.errors import SettingsError
from rlhf_core.learning.alternatives_settings import GRPO, BestOfNSettings, RLOOSettings
from rlhf_core.runs.options import declare_reward, declare_run, read_settings

LORA_LEARNING_RATE: Final = 1e-5
"""What `--lora` trains with unless told."""
COMPARED_PROMPTS: Final = 64
"""Prompts on which best-of-N is measured, at most."""


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, RLOOSettings, lora=True)
    declare_reward(parser)
    parser.add_argument("--grpo", action="store_true", help="the settings of GRPO, where no others are given")
    parser.add_argument(
        "--best-of", type=int, default=4, metavar="N", help="compare with best-of-N of the policy as it was (4); 0: not"
    )


def run(options: argparse.Namespace) -> int:
    from rlhf_core.learning.best_of_n import compare, measure_best_of_n
    from rlhf_core.learning.rloo import train_rloo
    from rlhf_core.models.trainable import make_trainable
    from rlhf_core.runs.encode import read_prompts
    from rlhf_core.runs.model import load_start, save_policy
    from rlhf_core.runs.reward_function import load_score_function
    from rlhf_core.runs.run import open_run

    settings = settings_of(options)
    with open_run("rloo", options, settings) as run:
        start = load_start(options, run.devices)
        trainable = make_trainable(start.policy, start.lora, compute=run.devices.compute, seed=options.seed)
        longest = start.policy.max_context - settings.max_new_tokens
        prompts = read_prompts(options.data, start.policy, run.tally, max_tokens=longest)
        score_fn = load_score_function(options.reward, start.policy, run.devices.device)
        table = None
        if options.best_of:
            asked, best = prompts[:COMPARED_PROMPTS], best_of_n_settings(settings, options.best_of)
            table = measure_best_of_n(trainable.policy, score_fn, asked, best, options.seed, run.devices)
        history = train_rloo(trainable, score_fn, prompts, settings, options.seed, run.hooks, run.devices)
        run.finish(lambda directory: save_policy(start, trainable, directory))
        if table and history:
            last = history[-1]
            run.say(str(compare(table, score=last["objective/shaped_score"], kl=last["objective/kl_seq"])))
    return 0


def settings_of(options: argparse.Namespace) -> RLOOSettings:
    """What was asked for, over the usual settings of the algorithm that was asked for. Raises SettingsError."""
    if options.best_of < 0 or options.best_of == 1:
        raise SettingsError(f"--best-of is {options.best_of}: at least 2 answers are compared, or 0 for none")
    usual: dict[str, Any] = msgspec.structs.asdict(GRPO if options.grpo else RLOOSettings())
    if options.lora:
        usual["learning_rate"] = LORA_LEARNING_RATE
    return read_settings(options, RLOOSettings, **usual)


def best_of_n_settings(settings: RLOOSettings, candidates: int) -> BestOfNSettings:
    """Sampling exactly as `settings` say, `candidates` times for each prompt."""
    return BestOfNSettings(
        candidates=candidates,
        sampler_slots=settings.sampler_slots,
        max_new_tokens=settings.max_new_tokens,
        missing_end_penalty=settings.missing_end_penalty,
        score_clip=settings.score_clip,
        temperature=settings.temperature,
    )
