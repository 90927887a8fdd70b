"""`make bench-learning`: speed and memory of the trainings, beside TRL's on the same task where TRL is installed.

Each training runs in a process of its own, one after the other. TRL lives in environments of its own: $TRL_PPO names
the Python of one with TRL 0.24, the last with PPO, and $TRL the Python of one with a recent release.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch

from rlhf_core.bench import task
from rlhf_core.bench.machine import describe_machine
from rlhf_core.errors import AttuneError
from rlhf_core.learning.devices import Compute
from rlhf_core.models.placement import has_bfloat16

SECTIONS: Final = ("ppo", "reward", "sft", "lora")
UNITS: Final[Mapping[str, str]] = {
    "ppo": "rollouts/s",
    "reward": "pairs/s",
    "sft": "tokens/s",
    "lora": "rollouts/s",
}
LONGEST_SECONDS: Final = 1200.0
HERE: Final = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    print(describe_machine(), flush=True)
    with tempfile.TemporaryDirectory(prefix="attune-bench-") as place:
        small = task.make_model(Path(place) / "small", task.SMALL)
        for section in options.section:
            directory = task.make_model(Path(place) / "shape", task.SHAPE) if section == "lora" else small
            try:
                report(section, directory, precisions(options.compute))
            except AttuneError as error:
                print(f"{section}: {error}", file=sys.stderr)
                return 1
    return 0


def precisions(chosen: str) -> list[Compute]:
    """bfloat16 only where the processor multiplies it itself: elsewhere it is emulated, for everyone."""
    native = has_bfloat16(torch.device("cpu"))
    return ["float32", "bfloat16"] if chosen == "both" or (chosen == "auto" and native) else ["float32"]


def report(section: str, directory: Path, computes: Sequence[Compute]) -> None:
    print(f"\n=== {section}: {TITLES[section]}\n")
    print(f"{'who':<28}{'compute':<10}{UNITS[section]:>12}{'x TRL':>8}{'peak MB':>9}  of it")
    for compute in computes:
        rivals = {name: run(command, given) for name, command, given in rival_commands(section, directory, compute)}
        known = [found["rate"] for found in rivals.values() if found]
        best = max(known) if known else None
        ours = run(
            [sys.executable, "-m", "rlhf_core.bench.ours", section, str(directory), compute, str(updates(section))],
            None,
        )
        if ours is None:
            raise AttuneError("the training failed: see above")
        for name, found in {"attune": ours, **rivals}.items():
            line(name, compute, found, best)
    print(flush=True)


TITLES: Final[Mapping[str, str]] = {
    "ppo": "5.5 M parameters, prompt 32, response 48, 64 rollouts an update, 4 epochs of 4 minibatches",
    "reward": "the same model, pairs of about 120 tokens, one epoch of 512, batches of 16",
    "sft": "the same model, rows of about 45 tokens, one epoch of 768",
    "lora": "135 M parameters, LoRA of rank 16, prompt 64, response 64, 64 rollouts, 2 epochs of 4 minibatches",
}


def updates(section: str) -> int:
    return 1 if section == "lora" else task.UPDATES


def line(name: str, compute: str, found: Mapping[str, float] | None, best: float | None) -> None:
    if found is None:
        print(f"{name:<28}{compute:<10}{'failed':>12}")
        return
    ratio = f"{found['rate'] / best:.2f}x" if best else "-"
    more = [f"{key.removeprefix('time/')} {value:.2f} s" for key, value in found.items() if key.startswith("time/")]
    if "accuracy" in found:
        more.append(f"held-out accuracy {found['accuracy']:.1%}")
    print(
        f"{name:<28}{compute:<10}{found['rate']:>12.1f}{ratio:>8}{found['peak_mb']:>9.0f}  {', '.join(more)}",
        flush=True,
    )


def rival_commands(section: str, directory: Path, compute: Compute) -> list[tuple[str, list[str], dict[str, Any]]]:
    """Name, command and task of every TRL that is installed for this section."""
    ppo_python, rows_python = os.environ.get("TRL_PPO"), os.environ.get("TRL")
    if section == "ppo" and ppo_python:
        given = {
            "rollouts": task.ROLLOUTS,
            "epochs": task.EPOCHS,
            "minibatches": task.MINIBATCHES,
            "response_tokens": task.RESPONSE_TOKENS,
            "prompts": task.prompts(task.ROLLOUTS * task.UPDATES, task.SMALL["vocab_size"]),
        }
        return [
            (
                "TRL PPOTrainer",
                [ppo_python, str(HERE / "trl_ppo.py"), str(directory), compute, str(task.UPDATES)],
                given,
            )
        ]
    if section in ("reward", "sft") and rows_python:
        given = {
            "batch": task.BATCH,
            "learning_rate": 2e-4,
            "train": task.pairs(task.TRAIN_PAIRS, 1) if section == "reward" else task.demonstrations(task.TRAIN_ROWS),
            "held_out": task.pairs(task.HELD_OUT_PAIRS, 2),
        }
        kinds = {"reward": "TRL RewardTrainer"} if section == "reward" else {"sft": "TRL SFTTrainer"}
        if section == "sft":
            kinds["sft-packed"] = "TRL SFTTrainer, packed"
        script = str(HERE / "trl_rows.py")
        return [(name, [rows_python, script, kind, str(directory), compute], given) for kind, name in kinds.items()]
    return []


def run(command: Sequence[str], given: Mapping[str, Any] | None) -> dict[str, float] | None:
    """The JSON of the last line that a training prints; None, and its last words on stderr, when it failed."""
    try:
        ended = subprocess.run(
            command,
            input=json.dumps(given) if given is not None else None,
            capture_output=True,
            text=True,
            timeout=LONGEST_SECONDS,
            env=os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        print(f"{command[0]}: {error}", file=sys.stderr)
        return None
    if ended.returncode != 0 or not ended.stdout.strip():
        print("\n".join(ended.stderr.strip().splitlines()[-3:]), file=sys.stderr)
        return None
    found: dict[str, float] = json.loads(ended.stdout.strip().splitlines()[-1])
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_core.bench",
        description="Measure the trainings on this machine, beside TRL's where $TRL_PPO (TRL 0.24) and $TRL (a recent "
        "one) name the Python of an environment that has it.",
    )
    parser.add_argument("--section", action="append", choices=SECTIONS, help="May be repeated. Default: all")
    parser.add_argument(
        "--compute", choices=("auto", "float32", "both"), default="auto", help="auto: bfloat16 where it is native"
    )
    options = parser.parse_args(arguments)
    options.section = options.section or SECTIONS
    return options


if __name__ == "__main__":
    sys.exit(main())
