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
    from rlhf_core.learning.ppo_scores import ScoreFunction
    from rlhf_core.models.load import LoadedPolicy
    from rlhf_core.models.trainable import Trainable
    from rlhf_core.records import TokenIds
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


class Beside:
    """Best-of-N of the policy as it was, and the trained policy on the same prompts."""

    def __init__(
        self,
        run: Run,
        options: argparse.Namespace,
        settings: PPOSettings | RLOOSettings,
        score_fn: ScoreFunction,
        prompts: Sequence[TokenIds],
    ) -> None:
        self._run = run
        self._score_fn = score_fn
        self._prompts = prompts[:COMPARED_PROMPTS]
        self._best = best_of_n_settings(settings, options.best_of) if options.best_of else None
        self._seed = options.seed
        self._table: list[BestOfN] = []
        if self._best and (why := _incomparable(settings)):
            run.say(f"no comparison with best-of-N: {why}")
            self._best = None

    def measure(self, policy: LoadedPolicy, *, resume: bool) -> None:
        """Best-of-1 to best-of-N of `policy`, before it learns. A resumed run reads what was measured."""
        from rlhf_core.learning.best_of_n import BestOfN, measure_best_of_n

        path: Path = self._run.directory / KEPT
        if not self._best:
            return
        if resume and path.is_file():
            self._table = msgspec.json.decode(path.read_bytes(), type=list[BestOfN])
            return
        devices = self._run.devices
        self._table = measure_best_of_n(policy, self._score_fn, self._prompts, self._best, self._seed, devices)
        if devices.is_main:
            write_synced(path, msgspec.json.encode(self._table))

    def say(self, trainable: Trainable) -> None:
        """One sentence: the trained policy's score and KL, and best-of-N's score at that KL."""
        from rlhf_core.learning.answer_logprobs import answer_kls
        from rlhf_core.learning.best_of_n import compare
        from rlhf_core.learning.fresh_responses import draw_responses, shaped_scores_of

        if not self._best:
            return
        devices = self._run.devices
        asked = [prompt for prompt in self._prompts for _ in range(self._best.candidates)]
        drawn = draw_responses(trainable.policy, asked, self._best, self._seed, 1, devices)
        _, shaped = shaped_scores_of(drawn, self._score_fn, self._best, devices)
        kls = answer_kls(trainable, [(one.prompt, one.token_ids) for one in drawn], self._best, devices)
        self._run.say(str(compare(self._table, score=float(shaped.mean()), kl=float(kls.mean()))))


def _incomparable(settings: PPOSettings | RLOOSettings) -> str:
    """Why what was climbed is not what best-of-N is measured by; empty where it is."""
    if isinstance(settings, PPOSettings) and settings.axes:
        return f"the axis {settings.axes[0]} is weighed besides the score"
    if isinstance(settings, PPOSettings) and settings.missing_end == "replace":
        return "--missing-end is replace"
    return ""
