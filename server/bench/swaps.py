"""Swaps under load: publication after publication, each as soon as the one before serves.

The same few sealed checkpoints are published in turn, as a roll-back would: making one costs a training in real life,
and here it would only take the cores from what is measured.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rlhf_core.bench.machine import resident_of
from rlhf_core.errors import AttuneError
from rlhf_core.models.adapted import copy_adapter
from rlhf_core.models.load import fetch_model
from rlhf_core.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from rlhf_core.records import Manifest
from server.bench.client import Fields, Heard, load
from server.bench.figures import quantile
from server.bench.models import BenchModel, prompts
from server.bench.servers import Attune, last_line
from server.bench.speed import PROMPT_TOKENS

SWAP_USERS = 8
CALM_SECONDS = 30.0
"""Without swaps: long enough to meet the machine's own hiccups, which the swaps will meet too."""
AROUND_SECONDS = 1.0
"""A gap belongs to a flip when it touches the time this close to it."""
SETTLED_AT = 5
"""Memory is compared from this swap on: by then the allocator has seen two weight sets come and go."""
SERVED_WITHIN_SECONDS = 120.0
POLL_SECONDS = 0.05
SWAP_SEED = 300
RANK = 8


@dataclass
class SwapRun:
    """A load, and the swaps that came while it ran. Times in monotonic seconds, memory in bytes."""

    heard: list[Heard] = field(default_factory=list)
    flips: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """From each publication until it served."""
    resident: list[int] = field(default_factory=list)
    """Of the server: before, after each swap, and at the end, idle."""


def full_weights(attune: Attune, model: BenchModel) -> list[Manifest]:
    """Two checkpoints that differ: the model, and the model with its last norm a thousandth larger."""

    def same(directory: Path) -> None:
        fetch_model(str(model.directory), directory)

    def changed(directory: Path) -> None:
        same(directory)
        weights = AutoModelForCausalLM.from_pretrained(directory, dtype="auto", local_files_only=True)
        with torch.no_grad():
            weights.base_model.norm.weight.mul_(1.001 if weights.dtype == torch.float32 else 1.01)
        weights.save_pretrained(directory)

    return [attune.seal(changed), attune.seal(same)]


def adapters(attune: Attune, model: BenchModel) -> list[Manifest]:
    """Two LoRA adapters of rank 8 on every query and value projection of what is live, which holds full weights."""
    base = attune.policies.version(attune.policies.live_version()).checkpoint_id
    weights = AutoModelForCausalLM.from_pretrained(model.directory, local_files_only=True)
    sealed = []
    for seed in (1, 2):
        with tempfile.TemporaryDirectory() as place:
            made = make_adapter(weights, Path(place), seed)
            sealed.append(attune.seal(partial(copy_adapter, made, attune.data / "checkpoints" / base), base=base))
    return sealed


def make_adapter(model: Any, directory: Path, seed: int) -> Path:
    """Random low-rank terms in peft's two files."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "v_proj")):
            path = f"base_model.model.{name}"
            tensors[f"{path}.lora_A.weight"] = torch.randn(RANK, module.in_features, generator=draw) * 0.01
            tensors[f"{path}.lora_B.weight"] = torch.randn(module.out_features, RANK, generator=draw) * 0.01
    save_file(tensors, directory / ADAPTER_WEIGHTS)
    (directory / ADAPTER_CONFIG).write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": RANK}))
    return directory


KINDS: Final[dict[str, Callable[[Attune, BenchModel], list[Manifest]]]] = {
    "full weights": full_weights,
    "adapters": adapters,
}
"""What is published, and who makes the checkpoints."""


def report_swaps(attune: Attune, model: BenchModel, count: int, new_tokens: int, seconds: float = CALM_SECONDS) -> None:
    """Measure without swaps, then `count` of each kind. The server starts from the version that it serves."""
    # Past its end token a policy mostly says what has no text, and no stream shows the time of that.
    fields = {**attune.running.fields, "max_tokens": new_tokens, "ignore_eos": False}
    calm = asyncio.run(under_load(attune, model, fields, [], 0, seconds))
    gaps = [gap for one in calm.heard for gap in one.gaps]
    tail, worst = quantile(gaps, 99), 1000 * max(gaps, default=0.0)
    print(
        f"\n{SWAP_USERS} streams without swaps for {seconds:.0f} s: gap p99 {tail:.1f} ms, largest {worst:.1f} ms ",
        end="",
    )
    print(f"({worst / tail:.2f}x)", flush=True)
    for kind, make in KINDS.items():
        sealed = make(attune, model)
        run = asyncio.run(under_load(attune, model, fields, sealed, count, 0.0))
        report_run(kind, run, tail)


async def under_load(
    attune: Attune, model: BenchModel, fields: Fields, sealed: Sequence[Manifest], count: int, seconds: float
) -> SwapRun:
    """SWAP_USERS streams for `seconds` and through `count` swaps, and until their last answers have ended."""
    run = SwapRun(resident=[resident_bytes(attune)])
    ended = asyncio.Event()
    asked = prompts(model.tokenizer, PROMPT_TOKENS, SWAP_SEED + count)
    loading = asyncio.create_task(load(attune.running.url, SWAP_USERS, asked, fields, lambda _: not ended.is_set()))
    try:
        await asyncio.sleep(max(seconds, AROUND_SECONDS))
        for number in range(count):
            await swap(attune, sealed[number % len(sealed)], run)
        await asyncio.sleep(AROUND_SECONDS)
    finally:
        ended.set()
        run.heard = await loading
    await asyncio.sleep(AROUND_SECONDS)
    run.resident.append(resident_bytes(attune))
    return run


async def swap(attune: Attune, checkpoint: Manifest, run: SwapRun) -> None:
    """Publish, and wait until it serves. Raises AttuneError when it does not."""
    started = time.monotonic()
    version = await asyncio.to_thread(attune.publish, checkpoint)
    while await asyncio.to_thread(lambda: attune.policy_version) != version:
        if time.monotonic() > started + SERVED_WITHIN_SECONDS:
            raise AttuneError(f"policy {version} does not serve: {last_line(attune.running.log)}")
        await asyncio.sleep(POLL_SECONDS)
    run.flips.append(time.monotonic())
    run.seconds.append(time.monotonic() - started)
    run.resident.append(resident_bytes(attune))


def resident_bytes(attune: Attune) -> int:
    """Of the server process, which has no children."""
    return resident_of(attune.running.process.pid)


def largest_gap(heard: Sequence[Heard], flips: Sequence[float]) -> float:
    """Longest silence of a stream, in seconds, that touches the time around a flip. 0 without any."""
    found = [0.0]
    for one in heard:
        for earlier, later in zip(one.frames, one.frames[1:], strict=False):
            if any(earlier < flip + AROUND_SECONDS and later > flip - AROUND_SECONDS for flip in flips):
                found.append(later - earlier)
    return max(found)


def mixed(heard: Sequence[Heard]) -> int:
    """Answers whose frames name more than one policy version, or another one than their head."""
    return sum(one.fingerprints != {next(iter(one.fingerprints), "")} or not _named(one) for one in heard)


def _named(one: Heard) -> bool:
    """Whether the fingerprint, `policy-VERSION-HASH`, is of the version that the head names."""
    return all(fingerprint.startswith(f"policy-{one.version}-") for fingerprint in one.fingerprints)


def report_run(kind: str, run: SwapRun, tail: float) -> None:
    """`tail` is the p99 gap without swaps, in milliseconds."""
    whole = [one for one in run.heard if not one.error]
    failed = [one for one in run.heard if one.error]
    cut = sum(one.cut for one in failed)
    gap = 1000 * largest_gap(run.heard, run.flips)
    between = [gap for one in run.heard for gap in one.gaps]
    print(f"\n{len(run.flips)} swaps of {kind} under {SWAP_USERS} streams, ", end="")
    print(f"{sorted(run.seconds)[len(run.seconds) // 2]:.2f} s each from publication to service (median)")
    print(f"  {len(whole)} answers, {len(failed) - cut} errors, {cut} cut streams, {mixed(whole)} of mixed versions")
    print(f"  answers by version: {by_version(whole)}")
    print(
        f"  largest gap within {AROUND_SECONDS:.0f} s of a flip {gap:.1f} ms, p99 without swaps {tail:.1f} ms: ", end=""
    )
    print(f"{gap / tail:.2f}x; p99 meanwhile {quantile(between, 99):.1f} ms")
    print(f"  resident memory: {memory(run)}", flush=True)


def by_version(whole: Sequence[Heard]) -> str:
    counts = Counter(int(one.version) for one in whole)
    return " ".join(f"{version}:{counts[version]}" for version in sorted(counts))


def memory(run: SwapRun) -> str:
    settled = run.resident[min(SETTLED_AT, len(run.flips))]
    before, last, idle = run.resident[0], run.resident[-2], run.resident[-1]
    mebi = [f"{value / 2**20:.0f}" for value in (before, settled, last, idle)]
    after = min(SETTLED_AT, len(run.flips))
    return f"{mebi[0]} MiB before, {mebi[1]} after swap {after}, {mebi[2]} after swap {len(run.flips)}, {mebi[3]} idle"
