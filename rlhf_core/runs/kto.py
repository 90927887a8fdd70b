"""`attune kto`: train a policy on thumbs."""

from __future__ import annotations

import argparse
from typing import Final

from rlhf_core.learning.alternatives_settings import KTOSettings
from rlhf_core.runs.options import declare_run, read_settings

LORA_LEARNING_RATE: Final = 1e-5
"""What `--lora` trains with unless told."""


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, KTOSettings, lora=True)


def run(options: argparse.Namespace) -> int:
    from rlhf_core.learning.kto import train_kto
    from rlhf_core.models.trainable import make_trainable
    from rlhf_core.runs.judgements import read_judgements
    from rlhf_core.runs.model import load_start, save_policy
    from rlhf_core.runs.run import open_run

    settings = settings_of(options)
    with open_run("kto", options, settings) as run:
        start = load_start(options, run.devices)
        trainable = make_trainable(start.policy, start.lora, compute=run.devices.compute, seed=options.seed)
        ratings, pairs = read_judgements(options.data, start.policy, run.tally, max_tokens=start.policy.max_context)
        if pairs:
            run.say(f"{len(pairs)} pairs are left out: KTO learns from thumbs")
        train_kto(trainable, ratings, settings, options.seed, run.hooks, run.devices)
        run.finish(lambda directory: save_policy(start, trainable, directory))
    return 0


def settings_of(options: argparse.Namespace) -> KTOSettings:
    """The settings that were asked for. Raises SettingsError."""
    usual = LORA_LEARNING_RATE if options.lora else KTOSettings().learning_rate
    return read_settings(options, KTOSettings, learning_rate=usual)
