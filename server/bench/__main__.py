"""`make bench`: a real server under streaming users, beside other servers and `generate()`, in one run.

Ratios travel between machines better than numbers do, so everything is measured here and now, one server at a time,
by the same client with the same prompts.
"""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import transformers

from rlhf_core.bench.machine import describe_machine
from rlhf_core.errors import AttuneError
from server.bench.long import report_long
from server.bench.models import BenchModel, prepare_model
from server.bench.servers import attune
from server.bench.speed import PROMPT_TOKENS, Requests, report_speed
from server.bench.swaps import report_swaps

NEW_TOKENS = 64
SWITCH_SECONDS = 0.0005
SECTIONS = ("speed", "long", "swap")
SMALL_MODEL_PARAMETERS = 20_000_000
SMALL: Requests = {1: 8, 8: 6, 32: 4}
LARGE: Requests = {1: 2, 8: 2, 32: 1}
QUICK: Requests = {1: 1, 2: 1}


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    print(describe_machine())
    try:
        for name in options.model or ("desk", "shape"):
            with tempfile.TemporaryDirectory(prefix="attune-bench-") as place, hearing_at_once():
                bench(name, Path(place), options)
    except AttuneError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def bench(name: str, place: Path, options: argparse.Namespace) -> None:
    """Every section that was asked for, on one model."""
    started = time.monotonic()
    model = prepare_model(name, place)
    gc.collect()
    small = model.parameters < SMALL_MODEL_PARAMETERS
    print(f"\n=== {describe(model)}", flush=True)
    new_tokens = 8 if options.quick else NEW_TOKENS
    if "speed" in options.section:
        requests = QUICK if options.quick else SMALL if small else LARGE
        report_speed(model, place, requests, new_tokens, rivals=not options.no_rivals)
        gc.collect()
    if {"long", "swap"} & set(options.section):
        with attune(model.directory, place / "swapping", dtype=model.served_dtype) as ours:
            if "long" in options.section:
                report_long(ours.running, model, 1 if options.quick else 5 if small else 3)
            if "swap" in options.section:
                count = options.swaps or (2 if options.quick else 30 if small else 10)
                seconds = {"seconds": 1.0} if options.quick else {}
                report_swaps(ours, model, count, new_tokens, **seconds)
    print(f"\n({name}: {time.monotonic() - started:.0f} s)", flush=True)


@contextmanager
def hearing_at_once() -> Iterator[None]:
    """What holds this process up would look like a server's silence: its garbage is looked for between measurements
    alone, a fifth of a second each time, and a thread that publishes gives way to the one that listens."""
    before = sys.getswitchinterval()
    gc.disable()
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        yield
    finally:
        sys.setswitchinterval(before)
        gc.enable()


def describe(model: BenchModel) -> str:
    prompt = f"prompts of about {PROMPT_TOKENS} tokens, each of other words from the first on"
    return f"{model.name}: {model.parameters / 1e6:.1f} M parameters, {model.dtype}; {prompt}; {NEW_TOKENS} new tokens"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m server.bench",
        description="Measure serving on this machine, beside generate() and the servers that are installed: vLLM "
        "(`vllm` on PATH, or $VLLM) and `transformers serve` (`transformers`, or $TRANSFORMERS_CLI).",
    )
    parser.add_argument(
        "--model",
        action="append",
        help="desk, shape (a random Llama of SmolLM2-135M's shape), a model directory or a hub id; may be repeated. "
        "Default: desk and shape",
    )
    parser.add_argument(
        "--section",
        action="append",
        choices=SECTIONS,
        help="speed: users, tokens/s and latencies; long: a long prompt, a follow-up turn; swap: swaps under load. "
        "May be repeated. Default: all",
    )
    parser.add_argument("--swaps", type=int, help="swaps of each kind. Default: 30, and 10 for a large model")
    parser.add_argument("--no-rivals", action="store_true", help="measure Attune and generate() only")
    parser.add_argument(
        "--quick", action="store_true", help="a few requests, to see that it works: numbers mean little"
    )
    options = parser.parse_args(arguments)
    options.section = options.section or SECTIONS
    return options


if __name__ == "__main__":
    sys.exit(main())
