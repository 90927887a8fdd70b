"""Streaming users in a closed loop, the same for each server, and `generate()` on static batches beside them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from rlhf_core.errors import AttuneError
from rlhf_core.models.load import render_prompt
from rlhf_core.records import Message
from server.bench.client import load
from server.bench.figures import Speed, speed_of
from server.bench.models import BenchModel, prompts, without_end
from server.bench.servers import RIVALS, Rival, Running, attune

PROMPT_TOKENS = 100
WARM_UP_SEED, SPEED_SEED = 1, 2

Requests = Mapping[int, int]
"""Users at once, and how many requests each sends in turn."""

HEADING = (
    f"{'server':<19}{'dtype':<10}{'users':>5}{'tokens/s':>10}{'x generate()':>14}"
    f"{'first token p50 / p99':>24}{'between p50 / p99 (ms)':>25}{'tokens/frame':>14}"
)


def report_speed(model: BenchModel, place: Path, requests: Requests, new_tokens: int, *, rivals: bool) -> None:
    """Print a line for each server and number of users. A rival that is absent or fails is named and passed over."""
    print(f"\n{HEADING}")
    static = generate_speeds(model, place, tuple(requests), new_tokens)
    for users, speed in static.items():
        print(
            f"{'generate()':<19}{model.dtype:<10}{users:>5}{speed:>10.0f}{1:>13.2f}x   (one static batch)", flush=True
        )
    with attune(model.directory, place / "attune", dtype=model.served_dtype) as ours:
        measure(ours.running, model, requests, new_tokens, static)
    for rival in RIVALS if rivals else ():
        report_rival(rival, model, place, requests, new_tokens, static)


def report_rival(
    rival: Rival, model: BenchModel, place: Path, requests: Requests, new_tokens: int, static: Mapping[int, float]
) -> None:
    executable = rival.found()
    if executable is None:
        print(f"{rival.name:<19}not installed (looked for `{rival.executable}` and ${rival.variable})")
        return
    try:
        with rival.serving(executable, model, place / rival.executable) as running:
            measure(running, model, requests, new_tokens, static)
    except AttuneError as error:
        print(f"{rival.name:<19}{error}", flush=True)


def measure(
    running: Running, model: BenchModel, requests: Requests, new_tokens: int, static: Mapping[int, float]
) -> None:
    """Warm a server up, then print its line for each number of users. Raises AttuneError when an answer fails."""
    speed_under(running, model, max(requests), 1, min(8, new_tokens), WARM_UP_SEED)
    for users, each in requests.items():
        speed = speed_under(running, model, users, each, new_tokens, SPEED_SEED + users)
        print(line(running, speed, static[users]), flush=True)


def speed_under(running: Running, model: BenchModel, users: int, each: int, new_tokens: int, seed: int) -> Speed:
    """`users` at once who send `each` requests. The same seed asks every server the same."""
    asked = prompts(model.tokenizer, PROMPT_TOKENS, seed)
    fields = {**running.fields, "max_tokens": new_tokens}
    return speed_of(asyncio.run(load(running.url, users, asked, fields, lambda sent: sent < each)), users)


def line(running: Running, speed: Speed, static: float) -> str:
    first = f"{speed.first[0]:13.1f} /{speed.first[1]:9.1f}"
    between = f"{speed.between[0]:14.1f} /{speed.between[1]:9.1f}"
    ratio = f"{speed.tokens_per_second / static:>13.2f}x"
    start = f"{running.name:<19}{running.dtype:<10}{speed.users:>5}{speed.tokens_per_second:>10.0f}{ratio}"
    return f"{start}{first}{between}{speed.tokens_per_frame:>14.2f}"


def generate_speeds(model: BenchModel, place: Path, batches: tuple[int, ...], new_tokens: int) -> dict[int, float]:
    """New tokens per second of `generate()` on one batch of each size, in this process."""
    directory = without_end(model, place / "generate")
    rival = AutoModelForCausalLM.from_pretrained(directory, dtype=model.dtype, local_files_only=True).eval()
    pad = model.tokenizer.pad_token_id or 0
    asked = prompts(model.tokenizer, PROMPT_TOKENS, SPEED_SEED)
    speeds = {}
    for size in (1, *batches):
        rows = [render_prompt(model.tokenizer, [Message("user", text)]) for text in islice(asked, size)]
        longest = max(map(len, rows))
        batch = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        started = time.monotonic()
        with torch.inference_mode():
            made = rival.generate(batch, attention_mask=mask, max_new_tokens=new_tokens, pad_token_id=pad)
        # The first batch warms up, and is measured again.
        speeds[size] = size * (made.shape[1] - longest) / (time.monotonic() - started)
    return speeds
