"""`make bench`: a real server under streaming users, beside `generate()` of transformers in the same run.

Ratios travel between machines better than numbers do. The swap gap is the largest silence of any stream while a policy
is published, verified, loaded, probed and flipped to; beside it stands that of the same load without a swap.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import torch
import transformers

from rlhf_core.checkpoints import new_checkpoint_id, seal
from rlhf_core.errors import AttuneError
from rlhf_core.models.load import fetch_model, load_policy, render_prompt
from rlhf_core.records import Message
from rlhf_core.settings import Settings, load_settings
from rlhf_core.store.connection import connect
from rlhf_core.store.embedded import start_embedded
from rlhf_core.store.policies import PolicyStore

PROMPT_TOKENS = 100
NEW_TOKENS = 64
REQUESTS = {1: 8, 8: 3, 32: 2}
"""Users at once, and how many requests each sends in turn."""
SWAP_USERS = 8
SWAP_SECONDS = 6.0
TEXT = "My order has not arrived and the router is slow again, so please tell me what I can do about it today. "


@dataclass(frozen=True)
class Heard:
    """One stream as its client heard it, in monotonic seconds: when each frame with text arrived."""

    sent_at: float
    frames: tuple[float, ...]
    version: str

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.frames, self.frames[1:], strict=False)]


async def ask(client: httpx.AsyncClient, prompt: str) -> Heard:
    message = {"role": "user", "content": prompt}
    body = {"messages": [message], "max_tokens": NEW_TOKENS, "ignore_eos": True, "stream": True}
    sent_at, frames = time.monotonic(), []
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        last = ""
        async for line in response.aiter_lines():
            if line:
                frames.append(time.monotonic())
                last = line
    if last != "data: [DONE]":
        raise RuntimeError(f"a stream ended with {last[:200]}")
    # The finish chunk and [DONE] bear no text.
    return Heard(sent_at, tuple(frames[:-2]), response.headers["x-policy-version"])


async def load(url: str, users: int, prompt: str, more: Callable[[int], bool]) -> list[Heard]:
    """`users` streams at once; each sends its next request while `more(how many it has sent)`."""

    async def user(client: httpx.AsyncClient) -> list[Heard]:
        heard: list[Heard] = []
        while more(len(heard)):
            heard.append(await ask(client, prompt))
        return heard

    async with httpx.AsyncClient(base_url=url, timeout=300.0) as client:
        everything = await asyncio.gather(*(user(client) for _ in range(users)))
        return [one for some in everything for one in some]


async def load_for_a_while(url: str, prompt: str, midway: Callable[[], object]) -> list[Heard]:
    """SWAP_USERS streams for SWAP_SECONDS; `midway` is called in a thread after a third of it."""
    until = time.monotonic() + SWAP_SECONDS
    loading = asyncio.create_task(load(url, SWAP_USERS, prompt, lambda _: time.monotonic() < until))
    await asyncio.sleep(SWAP_SECONDS / 3)
    await asyncio.to_thread(midway)
    return await loading


def generate_speed(model: Any, prompt: list[int], rows: int) -> float:
    """New tokens per second of `generate()` on a batch of `rows` equal prompts."""
    batch = torch.tensor([prompt] * rows)
    started = time.monotonic()
    with torch.inference_mode():
        mask = torch.ones_like(batch)
        model.generate(batch, attention_mask=mask, max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=True)
    return rows * NEW_TOKENS / (time.monotonic() - started)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def server(settings: Settings, data: Path, redis_url: str) -> Iterator[str]:
    """A server process on a free port, ready; its address."""
    port = free_port()
    named = {"DATA_DIR": data, "REDIS_URL": redis_url, "MODEL": settings.model, "API_PORT": port}
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    named["SERVE_THREADS"] = settings.serve_threads
    environment = clean | {f"ATTUNE_{name}": str(value) for name, value in named.items()}
    process = subprocess.Popen([sys.executable, "-m", "server"], env=environment, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{url}/health/ready").raise_for_status()
                break
            time.sleep(0.1)
        else:
            raise AttuneError(f"the server did not start (status {process.returncode})")
        yield url
    finally:
        process.terminate()
        process.wait(30)


def quantile(values: list[float], share: float) -> float:
    """In milliseconds."""
    return 1000 * (statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1])


def report_speed(url: str, prompt: str, model: Any, prompt_ids: list[int]) -> None:
    print("users  tokens/s  generate()  ratio   first token p50/p99   between tokens p50/p99 (ms)")
    for users, requests in REQUESTS.items():
        started = time.monotonic()
        heard = asyncio.run(load(url, users, prompt, lambda sent, most=requests: sent < most))  # type: ignore[misc]
        speed = len(heard) * NEW_TOKENS / (time.monotonic() - started)
        rival = generate_speed(model, prompt_ids, users)
        firsts = [one.frames[0] - one.sent_at for one in heard]
        gaps = [gap for one in heard for gap in one.gaps]
        first = f"{quantile(firsts, 0.5):9.1f} /{quantile(firsts, 0.99):8.1f}"
        between = f"{quantile(gaps, 0.5):12.1f} /{quantile(gaps, 0.99):8.1f}"
        print(f"{users:>5} {speed:>9.0f} {rival:>11.0f} {speed / rival:>5.2f}x {first} {between}")


def report_swap(url: str, prompt: str, publish: Callable[[], object]) -> None:
    calm = asyncio.run(load_for_a_while(url, prompt, lambda: None))
    swapped = asyncio.run(load_for_a_while(url, prompt, publish))
    gap_calm, gap_swap = (1000 * max(gap for one in some for gap in one.gaps) for some in (calm, swapped))
    old, new = ([one.version for one in swapped].count(version) for version in ("1", "2"))
    print(f"\nswap under {SWAP_USERS} streams: {old} answers by policy 1, {new} by policy 2, none cut")
    print(f"largest gap between tokens {gap_swap:.0f} ms with the swap, {gap_calm:.0f} ms without")


def main() -> int:
    transformers.utils.logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory(prefix="attune-bench-") as place:
            bench(load_settings(os.environ), Path(place))
    except AttuneError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    return 0


def bench(settings: Settings, place: Path) -> None:
    fetch_model(settings.model, place / "model")
    policy = load_policy(place / "model")
    model = transformers.AutoModelForCausalLM.from_pretrained(place / "model", dtype=torch.float32).eval()
    prompt = TEXT
    while len(render_prompt(policy.tokenizer, [Message("user", prompt + TEXT)])) <= PROMPT_TOKENS:
        prompt += TEXT
    prompt_ids = render_prompt(policy.tokenizer, [Message("user", prompt)])
    generate_speed(model, prompt_ids, 1)
    with start_embedded(place / "store", free_port()) as store, server(settings, place / "data", store.url) as url:
        asyncio.run(load(url, 2, prompt, lambda sent: sent < 1))
        parameters = sum(weights.numel() for weights in model.parameters())
        print(f"{settings.model}: {parameters / 1e6:.1f} M parameters, {torch.get_num_threads()} threads, ", end="")
        print(f"prompts of {len(prompt_ids)} tokens, {NEW_TOKENS} new\n")
        report_speed(url, prompt, model, prompt_ids)
        fields = {"checkpoint_id": new_checkpoint_id("policy"), "kind": "policy", "created_at": time.time()}
        manifest = seal(place / "data" / "checkpoints", lambda to: fetch_model(settings.model, to), fields)
        sealed: dict[str, Any] = {"checkpoint_id": manifest.checkpoint_id, "weights_sha256": manifest.weights_sha256}
        publish = partial(PolicyStore(connect(store.url)).publish, actor="operator", reason="bench", **sealed)
        report_swap(url, prompt, lambda: publish(now=time.time(), expected_version=1))


if __name__ == "__main__":
    sys.exit(main())
