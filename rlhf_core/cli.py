"""`attune`: what is done from a shell. Start everything; list, publish and roll back policies; train on files.

Each command prints what it did in a sentence or a table and exits 0, or prints one sentence to stderr and exits 1 (2
for a setting). Torch is loaded only by the commands that compute.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final

from rlhf_core.errors import AttuneError, SettingsError
from rlhf_core.settings import Settings, load_settings

RUNS: Final = {
    "sft": "fine-tune a model on demonstrations",
    "reward": "fit a reward model to pairs and thumbs",
    "ppo": "improve a policy with PPO against a reward",
    "dpo": "train a policy on preference pairs directly",
    "kto": "train a policy on thumbs directly",
    "rloo": "improve a policy with RLOO or GRPO, without a value head",
    "score": "score answers with a reward model or a function",
    "verify": "prove this installation on your own model",
    "estimate": "the memory that a command will need",
}
"""Commands over files: each is a module of `rlhf_core.runs`, imported when it is asked for."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit status."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    try:
        options = _parser(given[0] if given else "").parse_args(given)
        if given[0] in RUNS:
            return int(options.run(options))
        return int(options.run(load_settings(os.environ), options))
    except SettingsError as error:
        print(f"attune: {error}", file=sys.stderr)
        return 2
    except AttuneError as error:
        print(f"attune: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser(command_name: str = "") -> argparse.ArgumentParser:
    """`command_name`: the command that is wanted; of the others over files only the name is known."""
    parser = argparse.ArgumentParser(prog="attune", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("up", help="start everything on this machine; Ctrl-C ends it")
    command.set_defaults(run=_up)
    command = commands.add_parser("policies", help="list the published policies, newest last")
    command.set_defaults(run=_policies)
    command = commands.add_parser("publish", help="publish a checkpoint directory by hand")
    command.add_argument("directory", type=Path, metavar="DIR")
    command.add_argument("--reason", default="published by hand", help="kept in the ledger")
    command.set_defaults(run=_publish)
    command = commands.add_parser("rollback", help="publish the previous policy again, or the one named")
    command.add_argument("version", type=int, nargs="?", help="policy version to return to")
    command.add_argument("--reason", default="", help="kept in the ledger")
    command.set_defaults(run=_rollback)
    for name, text in RUNS.items():
        command = commands.add_parser(name, help=text, description=text)
        if name == command_name:
            module = import_module(f"rlhf_core.runs.{name}")
            module.declare(command)
            command.set_defaults(run=module.run)
    return parser


def _up(settings: Settings, _options: argparse.Namespace) -> int:
    from rlhf_core.up import up

    return up(settings)


def _policies(settings: Settings, _options: argparse.Namespace) -> int:
    from rlhf_core.ledger import describe, open_store

    for line in describe(open_store(settings)):
        print(line)
    return 0


def _publish(settings: Settings, options: argparse.Namespace) -> int:
    from rlhf_core.ledger import open_store
    from rlhf_core.publishing import publish_directory

    version = publish_directory(
        open_store(settings), settings.checkpoints_path, options.directory, options.reason, time.time()
    )
    print(f"policy {version.policy_version} is published: checkpoint {version.checkpoint_id}")
    return 0


def _rollback(settings: Settings, options: argparse.Namespace) -> int:
    from rlhf_core.ledger import open_store, roll_back

    version = roll_back(open_store(settings), settings.checkpoints_path, options.version, options.reason, time.time())
    print(f"policy {version.policy_version} is published: checkpoint {version.checkpoint_id} ({version.reason})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
