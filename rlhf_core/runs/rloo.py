"""`attune rloo`: improve a policy with RLOO, or with `--grpo`, and say what best-of-N reaches at the same KL."""

from __future__ import annotations

import argparse
from typing import Any, Final

import msgspec

from rlhf_core.learning.alternatives_settings import GRPO, RLOOSettings
from rlhf_core.runs.best_of import Beside, check_best_of, declare_best_of
from rlhf_core.runs.options import declare_reward, declare_run, read_settings

LORA_LEARNING_RATE: Final = 1e-5
"""What `--lora` trains with unless told."""


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, RLOOSettings, lora=True, keep_every=1)
    declare_reward(parser)
    parser.add_argument("--grpo", action="store_true", help="the settings of GRPO, where no others are given")
    declare_best_of(parser)


def run(options: argparse.Namespace) -> int:
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
        beside = Beside(run, options, settings, score_fn, prompts)
        beside.measure(trainable.policy, resume=options.resume)
        train_rloo(trainable, score_fn, prompts, settings, options.seed, run.hooks, run.devices)
        run.finish(lambda directory: save_policy(start, trainable, directory))
        beside.say(trainable)
    return 0


def settings_of(options: argparse.Namespace) -> RLOOSettings:
    """What was asked for, over the usual settings of the algorithm that was asked for. Raises SettingsError."""
    check_best_of(options)
    usual: dict[str, Any] = msgspec.structs.asdict(GRPO if options.grpo else RLOOSettings())
    if options.lora:
        usual["learning_rate"] = LORA_LEARNING_RATE
    return read_settings(options, RLOOSettings, **usual)
