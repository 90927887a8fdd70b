"""`attune sft`: fine-tune a model on demonstrations."""

from __future__ import annotations

import argparse
from typing import Final

from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.runs.options import declare_run, read_settings

LORA_LEARNING_RATE: Final = 1e-4
"""What `--lora` trains with unless told: adapters start from nothing and bear ten times the rate of full weights."""


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, SftSettings, lora=True)


def run(options: argparse.Namespace) -> int:
    from rlhf_core.learning.sft import train_supervised
    from rlhf_core.models.trainable import make_trainable
    from rlhf_core.runs.encode import read_demonstrations
    from rlhf_core.runs.model import load_start, save_policy
    from rlhf_core.runs.run import open_run

    settings = settings_of(options)
    with open_run("sft", options, settings) as run:
        start = load_start(options, run.devices)
        trainable = make_trainable(
            start.policy, start.lora, with_reference=False, compute=run.devices.compute, seed=options.seed
        )
        examples = read_demonstrations(
            options.data,
            start.policy,
            run.tally,
            max_tokens=min(settings.row_tokens, start.policy.max_context),
            raised_by="--row-tokens" if settings.row_tokens < start.policy.max_context else "",
        )
        result = train_supervised(trainable.model, examples, settings, hooks=run.hooks, devices=run.devices)
        tenth = max(1, len(result.losses) // 10)
        run.finish(
            lambda directory: save_policy(start, trainable, directory),
            {
                "loss_first": sum(result.losses[:tenth]) / tenth,
                "loss_last": sum(result.losses[-tenth:]) / tenth,
                "tokens": float(result.tokens),
                "steps": float(len(result.losses)),
            },
        )
    return 0


def settings_of(options: argparse.Namespace) -> SftSettings:
    """The settings that were asked for. Raises SettingsError."""
    usual = LORA_LEARNING_RATE if options.lora else SftSettings().learning_rate
    return read_settings(options, SftSettings, learning_rate=usual)
