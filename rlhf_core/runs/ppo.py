"""`attune ppo`: improve a policy with PPO against a reward, and say what best-of-N reaches at the same KL."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_core.errors import SettingsError
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.runs.best_of import Beside, check_best_of, declare_best_of
from rlhf_core.runs.options import declare_reward, declare_run, read_settings

if TYPE_CHECKING:
    from rlhf_core.learning.conversations import SftExample
    from rlhf_core.learning.ppo_update import Demonstration


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, PPOSettings, lora=True, keep_every=1)
    declare_reward(parser)
    parser.add_argument(
        "--judge", metavar="REWARD", help="a second reward that is reported, and stops a run by falling"
    )
    parser.add_argument("--served", metavar="MODEL", help="the policy that people talk to, to report the KL to")
    parser.add_argument(
        "--demonstrations", type=Path, nargs="+", metavar="FILE", help="imitated beside, by --demonstration-coef"
    )
    declare_best_of(parser)


def run(options: argparse.Namespace) -> int:
    from rlhf_core.learning.ppo import train_ppo
    from rlhf_core.models.load import locate_model
    from rlhf_core.models.trainable import make_trainable
    from rlhf_core.runs.encode import read_demonstrations, read_prompts
    from rlhf_core.runs.model import load_source, load_start, save_policy
    from rlhf_core.runs.reward_function import load_reward_scores, load_score_function
    from rlhf_core.runs.run import open_run

    settings = settings_of(options)
    with open_run("ppo", options, settings) as run:
        start, device = load_start(options, run.devices), run.devices.device
        trainable = make_trainable(start.policy, start.lora, compute=run.devices.compute, seed=options.seed)
        longest = start.policy.max_context - settings.max_new_tokens
        prompts = read_prompts(options.data, start.policy, run.tally, max_tokens=longest)
        examples = []
        if options.demonstrations:
            examples = read_demonstrations(
                options.demonstrations, start.policy, run.tally, max_tokens=start.policy.max_context
            )
        reward = load_reward_scores(options.reward, start.policy, device, axes=settings.axes)
        judge = load_score_function(options.judge, start.policy, device) if options.judge else None
        served = load_source(locate_model(options.served)).model.to(device) if options.served else None
        beside = Beside(run, options, settings, reward.score, prompts)
        beside.measure(trainable.policy, resume=options.resume)
        result = train_ppo(
            trainable,
            reward.score,
            prompts,
            settings,
            options.seed,
            hooks=run.hooks,
            devices=run.devices,
            axis_scores=reward.axes,
            judge=judge,
            served=served,
            demonstrations=[pair for example in examples for pair in answers_in(example)],
        )
        if result.stopped:
            run.say(f"stopped early: {result.stopped}")
        run.finish(lambda directory: save_policy(start, trainable, directory))
        beside.say(trainable)
    return 0


def settings_of(options: argparse.Namespace) -> PPOSettings:
    """The settings that were asked for. Raises SettingsError."""
    check_best_of(options)
    settings = read_settings(options, PPOSettings)
    if settings.floor_axis is None and (hasattr(options, "floor") or hasattr(options, "floor_rate")):
        raise SettingsError("--floor and --floor-rate mean something only with --floor-axis")
    return settings


def answers_in(example: SftExample) -> list[Demonstration]:
    """Each answer of a conversation with all that was said before it."""
    mask: Sequence[bool] = (*example.response_mask, False)
    starts = [at for at in range(1, len(mask)) if mask[at] and not mask[at - 1]]
    ends = [mask.index(False, at) for at in starts]
    return [(example.token_ids[:at], example.token_ids[at:end]) for at, end in zip(starts, ends, strict=True)]
