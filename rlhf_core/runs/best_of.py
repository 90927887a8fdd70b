"""Best-of-N beside a run: what sampling a few answers and keeping the best reaches, without any training."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from rlhf_core.checkpoints import write_synced
from rlhf_core.errors import SettingsError
from rlhf_core.learning.alternatives_settings import BestOfNSettings, RLOOSettings
from rlhf_core.learning.ppo_settings import PPOSettings

if TYPE_CHECKING:
    from rlhf_core.learning.best_of_n import BestOfN
    from rlhf_core.learning.hooks import Metrics
    from rlhf_core.learning.ppo_scores import ScoreFunction
    from rlhf_core.models.load import LoadedPolicy
    from rlhf_core.runs.run import Run

COMPARED_PROMPTS: Final = 64
"""Prompts on which best-of-N is measured, at most."""
KEPT: Final = "best_of_n.json"
"""In the run directory: what was measured, so that a resumed run need not sample again."""


def declare_best_of(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--best-of", type=int, default=4, metavar="N", help="compare with best-of-N of the policy as it was (4); 0: not"
    )


def check_best_of(options: argparse.Namespace) -> None:
    """Raises SettingsError for a number of answers that is no comparison."""
    if options.best_of < 0 or options.best_of == 1:
        raise SettingsError(f"--best-of is {options.best_of}: at least 2 answers are compared, or 0 for none")


def best_of_n_settings(settings: PPOSettings | RLOOSettings, candidates: int) -> BestOfNSettings:
    """Sampling exactly as `settings` say, `candidates` times for each prompt."""
    return BestOfNSettings(
        candidates=candidates,
        sampler_slots=settings.sampler_slots,
        max_new_tokens=settings.max_new_tokens,
        missing_end_penalty=settings.missing_end_penalty,
        score_clip=settings.score_clip,
        temperature=settings.temperature,
    )


def measure_beside(
    run: Run,
    options: argparse.Namespace,
    settings: PPOSettings | RLOOSettings,
    policy: LoadedPolicy,
    score_fn: ScoreFunction,
    prompts: Sequence[tuple[int, ...]],
) -> list[BestOfN]:
    """Best-of-1 to best-of-N of `policy` as it is now, before it learns; nothing with `--best-of 0`."""
    from rlhf_core.learning.best_of_n import BestOfN, measure_best_of_n

    path: Path = run.directory / KEPT
    if not options.best_of:
        return []
    if options.resume and path.is_file():
        return msgspec.json.decode(path.read_bytes(), type=list[BestOfN])
    best = best_of_n_settings(settings, options.best_of)
    table = measure_best_of_n(policy, score_fn, prompts[:COMPARED_PROMPTS], best, options.seed, run.devices)
    if run.devices.is_main:
        write_synced(path, msgspec.json.encode(table))
    return table


def say_beside(run: Run, table: Sequence[BestOfN], history: Sequence[Metrics]) -> None:
    """One sentence: the trained policy's score and KL, and best-of-N's score at that KL."""
    from rlhf_core.learning.best_of_n import compare

    if table and history:
        last = history[-1]
        run.say(str(compare(table, score=last["objective/shaped_score"], kl=last["objective/kl_seq"])))
