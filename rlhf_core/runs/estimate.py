"""`attune estimate`: the memory that a command will need, before it starts."""

from __future__ import annotations

import argparse
from importlib import import_module
from typing import Final

import msgspec

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
    from rlhf_core.engine.memory import available_memory, in_words
    from rlhf_core.models.load import locate_model
    from rlhf_core.models.placement import choose_device
    from rlhf_core.runs.memory import estimate_memory

    asked, settings = read_command(command, given)
    need = estimate_memory(command, asked, settings, model=locate_model(asked.model))
    available = available_memory(choose_device("auto"))
    print(f"attune {command}")
    for line in need.lines():
        print(f"  {line}")
    fits = need.total <= available
    print(f"  {in_words(available)} are available: it {'fits' if fits else 'does not fit'}", flush=True)
    return fits


def read_command(command: str, given: list[str]) -> tuple[argparse.Namespace, msgspec.Struct]:
    """The options of a command and its settings, with or without what memory does not depend on."""
    module = import_module(f"rlhf_core.runs.{command}")
    parser = argparse.ArgumentParser(prog=f"attune estimate {command}")
    module.declare(parser)
    required = {flag for action in parser._actions if action.required for flag in action.option_strings}
    # Before what was given, because the last one counts.
    filled = [word for flag, value in FILLED_IN if flag in required for word in (flag, value)]
    options = parser.parse_args([*filled, *given])
    settings: msgspec.Struct = module.settings_of(options)
    return options, settings
