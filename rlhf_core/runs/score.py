"""`attune score`: score answers with a reward model or a function; JSONL in, JSONL with a `score` out."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rlhf_core.runs.options import declare_compute, declare_data, declare_model, declare_reward


def declare(parser: argparse.ArgumentParser) -> None:
    declare_data(parser)
    declare_reward(parser)
    declare_model(parser, "model whose tokenizer and chat template the answers are read with", required=False)
    parser.add_argument("--out", type=Path, metavar="FILE", help="JSONL file to write; without it, standard output")
    declare_compute(parser)


def run(options: argparse.Namespace) -> int:
    from rlhf_core.runs.scoring import score_files, summarise

    tally, scores = score_files(options)
    for line in [*tally.lines(), *summarise(scores)]:
        print(line, file=sys.stderr)
    return 0
