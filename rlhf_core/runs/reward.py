"""`attune reward`: fit a reward model to pairs and thumbs, and report it beside the baselines it must beat."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

from rlhf_core.learning.reward.settings import RewardSettings
from rlhf_core.runs.options import declare_run, read_settings

LORA_LEARNING_RATE: Final = 1e-4
"""What `--lora` trains with unless told."""


def declare(parser: argparse.ArgumentParser) -> None:
    declare_run(parser, RewardSettings, lora=True, model="supervised policy whose trunk is the start")
    parser.add_argument(
        "--held-out", type=_share, default=0.2, metavar="SHARE", help="judgements kept to calibrate and report on (0.2)"
    )
    parser.add_argument(
        "--reference-samples",
        type=int,
        default=512,
        metavar="N",
        help="answers sampled from --model to normalise scores on (512); 0: the judged answers",
    )
    parser.add_argument(
        "--reference-tokens", type=int, default=96, metavar="N", help="longest of the sampled answers (96)"
    )
    parser.add_argument("--previous", type=Path, metavar="DIR", help="earlier reward checkpoint, as one more baseline")


def run(options: argparse.Namespace) -> int:
    from rlhf_core.runs.rewarding import fit_from_files
    from rlhf_core.runs.run import open_run

    settings = settings_of(options)
    with open_run("reward", options, settings) as run:
        for line in fit_from_files(options, settings, run):
            print(line)
    return 0


def settings_of(options: argparse.Namespace) -> RewardSettings:
    """The settings that were asked for. Raises SettingsError."""
    usual = LORA_LEARNING_RATE if options.lora else RewardSettings().learning_rate
    return read_settings(options, RewardSettings, learning_rate=usual)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share") from None
    if not 0.0 <= share < 1.0:
        raise argparse.ArgumentTypeError(f"it must be at least 0 and below 1, not {share}")
    return share
