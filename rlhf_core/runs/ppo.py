"""`attune ppo`: improve a policy with PPO against a reward, and say what best-of-N reaches at the same KL."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rlhf_core.errors import SettingsError
from rlhf_core.learning.alternatives_settings import BestOfNSettings
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.runs.options import declare_reward, declare_run, read_settings

if TYPE_CHECKING:
    from rlhf_core.learning.conversations import SftExample
    from rlhf_core.learning.ppo_scores import AxisScores
    from rlhf_core.learning.ppo_update import Demonstration

COMPARED_PROMPTS: Final = 64
"""Prompts on which best-of-N is measured, at most."""


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, PPOSettings, lora=True)
    declare_reward(parser)
    parser.add_argument(
        "--judge", metavar="REWARD", help="a second reward that is reported, and stops a run by falling"
    )
    parser.add_argument("--served", metavar="MODEL", help="the policy that people talk to, to report the KL to")
    parser.add_argument(
        "--demonstrations", type=Path, nargs="+", metavar="FILE", help="imitated beside, by --demonstration-coef"
    )
    parser.add_argument(
        "--best-of", type=int, default=4, metavar="N", help="compare with best-of-N of the policy as it was (4); 0: not"
    )


def run(options: argparse.Namespace) -> int:
    from rlhf_core.learning.best_of_n import compare, measure_best_of_n
    from rlhf_core.learning.ppo import train_ppo
    from rlhf_core.models.load import locate_model
    from rlhf_core.models.trainable import make_trainable
    from rlhf_core.runs.encode import read_demonstrations, read_prompts
    from rlhf_core.runs.model import load_source, load_start, save_policy
    from rlhf_core.runs.reward_function import load_score_function
    from rlhf_core.runs.run import open_run

    settings = read_settings(options, PPOSettings)
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
        score_fn = load_score_function(options.reward, start.policy, device)
        judge = load_score_function(options.judge, start.policy, device) if options.judge else None
        served = load_source(locate_model(options.served)).model.to(device) if options.served else None
        table = None
        if options.best_of:
            best = BestOfNSettings(
                candidates=options.best_of,
                sampler_slots=settings.sampler_slots,
                max_new_tokens=settings.max_new_tokens,
                missing_end_penalty=settings.missing_end_penalty,
                score_clip=settings.score_clip,
                temperature=settings.temperature,
            )
            asked = prompts[:COMPARED_PROMPTS]
            table = measure_best_of_n(trainable.policy, score_fn, asked, best, options.seed, run.devices)
        result = train_ppo(
            trainable,
            score_fn,
            prompts,
            settings,
            options.seed,
            hooks=run.hooks,
            devices=run.devices,
            axis_scores=axes_of(options.reward, settings, str(device)),
            judge=judge,
            served=served,
            demonstrations=[pair for example in examples for pair in answers_in(example)],
        )
        if result.stopped:
            run.say(f"stopped early: {result.stopped}")
        run.finish(lambda directory: save_policy(start, trainable, directory))
        if table and result.metrics:
            last = result.metrics[-1]
            run.say(str(compare(table, score=last["objective/shaped_score"], kl=last["objective/kl_seq"])))
    return 0


def axes_of(reward: str, settings: PPOSettings, device: str) -> AxisScores | None:
    """What scores single axes, where the settings weigh any. Raises SettingsError when the reward has none."""
    from rlhf_core.learning.reward_evaluation import score_axes
    from rlhf_core.learning.reward_files import load_reward
    from rlhf_core.runs.reward_function import is_checkpoint

    wanted = sorted({*settings.axis_weights, *([settings.floor_axis] if settings.floor_axis else [])})
    if not wanted:
        return None
    if not is_checkpoint(reward):
        raise SettingsError(f"--reward {reward} has no axes: {wanted[0]} is scored by reward checkpoints only")
    model = load_reward(Path(reward).expanduser()).to(device)
    for name in wanted:
        if name not in model.learned_axes:
            known = ", ".join(model.learned_axes) or "no axis"
            raise SettingsError(f"--reward {reward} has not learned the axis {name!r}; it knows {known}")
    return lambda prompts, responses: score_axes(model, list(zip(prompts, responses, strict=True)))


def answers_in(example: SftExample) -> list[Demonstration]:
    """Each answer of a conversation with all that was said before it."""
    mask: Sequence[bool] = (*example.response_mask, False)
    starts = [at for at in range(1, len(mask)) if mask[at] and not mask[at - 1]]
    ends = [mask.index(False, at) for at in starts]
    return [(example.token_ids[:at], example.token_ids[at:end]) for at, end in zip(starts, ends, strict=True)]
