"""The work of `attune score`: rows in, the same rows with a `score` out, a few hundred at a time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import msgspec
import torch

from rlhf_core.errors import ConflictError, SettingsError
from rlhf_core.learning.devices import Devices
from rlhf_core.models.load import locate_model
from rlhf_core.runs.encode import AT_ONCE, iterate_answers
from rlhf_core.runs.memory import require_memory
from rlhf_core.runs.precision import choose_compute
from rlhf_core.runs.reward_function import is_checkpoint, load_score_function
from rlhf_core.runs.tally import Tally
from rlhf_core.runs.vocabulary import load_vocabulary


def score_files(options: argparse.Namespace) -> tuple[Tally, list[tuple[float, bool | None]]]:
    """Score every row and write it out; returns the counts, and each score with its row's label.

    Raises ConflictError when the output exists, SettingsError when nothing says how to read the texts.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    source = _source(options)
    require_memory("score", options, None, model=source, processes=1)
    devices = Devices(choose_compute(options.compute))
    vocabulary = load_vocabulary(source)
    function = load_score_function(options.reward, vocabulary, devices.device)
    tally, scored = Tally(skip_bad=options.skip_bad), list[tuple[float, bool | None]]()
    answers = iterate_answers(options.data, vocabulary, tally, max_tokens=vocabulary.max_context)
    with _output(options.out) as file:
        while part := list(islice(answers, AT_ONCE)):
            with devices.autocast():
                scores = function([each.prompt_token_ids for each in part], [each.token_ids for each in part])
            for answer, score in zip(part, scores.tolist(), strict=True):
                file.write(msgspec.json.encode({**answer.content, "score": score}) + b"\n")
                scored.append((score, answer.up))
    return tally, scored


def _source(options: argparse.Namespace) -> Path:
    if options.model:
        return locate_model(options.model)
    if not is_checkpoint(options.reward):
        raise SettingsError("a function reads prompts as a model's template writes them: name the model with --model")
    return Path(options.reward).expanduser()


@contextmanager
def _output(path: Path | None) -> Iterator[BinaryIO]:
    """The file to write, which appears whole or not at all; standard output without a path."""
    if path is None:
        yield sys.stdout.buffer
        return
    if path.exists():
        raise ConflictError(f"{path} exists; it is not written over")
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
        aside.rename(path)
    finally:
        aside.unlink(missing_ok=True)


def summarise(scored: Sequence[tuple[float, bool | None]]) -> list[str]:
    """How the scores lie, and how they lie for each label, where there are labels."""
    lines = [_line("scores", [score for score, _ in scored])]
    for said, label in (("labelled true", True), ("labelled false", False)):
        some = [score for score, up in scored if up is label]
        if some:
            lines.append(_line(said, some))
    return lines


def _line(name: str, scores: Sequence[float]) -> str:
    values = torch.tensor(scores, dtype=torch.float64)
    quarter, median, three = torch.quantile(values, torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)).tolist()
    spread = float(values.std(unbiased=False))
    return (
        f"{name}: {len(scores)}, mean {float(values.mean()):.4f}, standard deviation {spread:.4f}, "
        f"quartiles {quarter:.4f} {median:.4f} {three:.4f}"
    )
