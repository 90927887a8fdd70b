"""`attune estimate`: the memory that a command will need, before it starts."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Final

from rlhf_core.runs.options import read_settings

TRAININGS: Final = ("sft", "reward", "ppo", "dpo", "kto", "rloo")
FILLED_IN: Final = (("--out", "unused"), ("--reward", "unused:unused"))
"""What the commands insist on and memory does not depend on."""


def declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("of", choices=(*TRAININGS, "all"), help="the command; all: each one with its default settings")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="its options, as you would give them; --out may lack")


def run(options: argparse.Namespace) -> int:
    """0 when everything asked about fits into the memory that is available now, else 1."""
    fits = [_report(command, options.options) for command in (TRAININGS if options.of == "all" else (options.of,))]
    return 0 if all(fits) else 1


def _report(command: str, given: list[str]) -> bool:
    import torch

    from rlhf_core.engine.memory import available_memory
    from rlhf_core.models.load import locate_model
    from rlhf_core.runs.memory import estimate_memory, in_words

    asked = _parse(command, given)
    settings = [read_settings(asked, each) for each in asked.settings_types]
    need = estimate_memory(command, asked, settings, model=locate_model(asked.model))
    available = available_memory(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"attune {command}")
    for line in need.lines():
        print(f"  {line}")
    fits = need.total <= available
    print(f"  {in_words(available)} are available: it {'fits' if fits else 'does not fit'}", flush=True)
    return fits


def _parse(command: str, given: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=f"attune estimate {command}")
    import_module(f"rlhf_core.runs.{command}").declare(parser)
    known = {flag for action in parser._actions for flag in action.option_strings}
    filled = [word for flag, value in FILLED_IN if flag in known and flag not in given for word in (flag, value)]
    return parser.parse_args([*given, *filled])
