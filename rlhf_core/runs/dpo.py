"""`attune dpo`: train a policy on preference pairs, or with `--online` on its own answers, ordered by a reward."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

import msgspec

from rlhf_core.errors import SettingsError
from rlhf_core.learning.alternatives_settings import DPOSettings, OnlineDPOSettings
from rlhf_core.runs.options import declare_run, declare_settings, read_settings

if TYPE_CHECKING:
    from rlhf_core.models.trainable import Trainable
    from rlhf_core.runs.run import Run

LORA_FACTOR: Final = 10.0
"""How much higher the learning rate of an adapter is than that of full weights, unless one is given."""


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, DPOSettings, lora=True)
    parser.set_defaults(keep_every=None)
    parser.add_argument(
        "--online",
        action="store_true",
        help="sample pairs from the policy; --data gives the prompts; a state is kept after every round of sampling",
    )
    parser.add_argument("--reward", metavar="REWARD", help="with --online: a reward checkpoint, or module:function")
    declare_settings(parser, OnlineDPOSettings, besides=DPOSettings)


def run(options: argparse.Namespace) -> int:
    from rlhf_core.models.trainable import make_trainable
    from rlhf_core.runs.model import load_start, save_policy
    from rlhf_core.runs.run import open_run

    settings = settings_of(options)
    options.keep_every = options.keep_every or (1 if options.online else 20)
    with open_run("dpo", options, settings) as run:
        start = load_start(options, run.devices)
        trainable = make_trainable(start.policy, start.lora, compute=run.devices.compute, seed=options.seed)
        _train(trainable, settings, options, run)
        run.finish(lambda directory: save_policy(start, trainable, directory))
    return 0


def settings_of(options: argparse.Namespace) -> DPOSettings | OnlineDPOSettings:
    """The settings that were asked for. Raises SettingsError for an option of the other kind of DPO."""
    kind: type[DPOSettings] | type[OnlineDPOSettings] = OnlineDPOSettings if options.online else DPOSettings
    other = DPOSettings if options.online else OnlineDPOSettings
    known = {field.name for field in msgspec.structs.fields(kind)}
    for field in msgspec.structs.fields(other):
        if field.name not in known and hasattr(options, field.name):
            flag, needs = "--" + field.name.replace("_", "-"), "without" if options.online else "with"
            raise SettingsError(f"{flag} means something only {needs} --online")
    if options.online != (options.reward is not None):
        raise SettingsError("--online needs --reward, and --reward needs --online")
    rate = kind().learning_rate * (LORA_FACTOR if options.lora else 1.0)
    if options.online:
        return read_settings(options, OnlineDPOSettings, learning_rate=rate)
    return read_settings(options, DPOSettings, learning_rate=rate)


def _train(
    trainable: Trainable, settings: DPOSettings | OnlineDPOSettings, options: argparse.Namespace, run: Run
) -> None:
    from rlhf_core.learning.dpo import train_dpo
    from rlhf_core.learning.online_dpo import train_online_dpo
    from rlhf_core.runs.encode import read_prompts
    from rlhf_core.runs.judgements import read_judgements
    from rlhf_core.runs.reward_function import load_score_function

    policy = trainable.policy
    if isinstance(settings, OnlineDPOSettings):
        longest = policy.max_context - settings.max_new_tokens
        prompts = read_prompts(options.data, policy, run.tally, max_tokens=longest)
        score_fn = load_score_function(options.reward, policy, run.devices.device)
        train_online_dpo(trainable, score_fn, prompts, settings, options.seed, run.hooks, run.devices)
        return
    ratings, pairs = read_judgements(options.data, policy, run.tally, max_tokens=policy.max_context)
    if ratings:
        run.say(f"{len(ratings)} thumbs are left out: DPO learns from pairs")
    train_dpo(trainable, pairs, settings, options.seed, run.hooks, run.devices)
