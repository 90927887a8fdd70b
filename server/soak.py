"""`make soak`: a server under mixed load for an hour, looked at while it rests.

Conversations, people who leave, readers who stall, wrong requests, scrapes, and a swap every twenty seconds between two
sealed checkpoints. Every half minute the load pauses: what the process then still holds, nobody is using. One line
each time; at the end the last quarter is compared with the second. Reads /proc, so it runs on Linux.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from rlhf_core.errors import AttuneError
from rlhf_core.models.load import fetch_model
from rlhf_core.records import Manifest
from rlhf_core.settings import load_settings
from server.bench.servers import Attune, attune
from server.misuse import LEAVINGS, PATIENCE, leave, stall, storm
from server.vitals import Vitals, at_rest, warm_up
from server.wire import CHAT, Address, Reply, Wire, chat_bytes, exchange, request_bytes

RUNNING, WAITING = 4, 60
STALL_SECONDS = 1.0
LOOK_SECONDS = 30.0
SWAP_SECONDS = 20.0
FLAT_MB = 16.0
"""Growth of the resident memory from the second quarter to the last that still counts as flat."""
PROMPTS = ("Hello.", "What can you do for me?", "My order has not arrived yet.", "My internet is slow, account 482910.")
WRONG = (
    (b"{", 400),
    (chat_bytes(temperature=9), 400),
    (chat_bytes(model="gpt-9"), 404),
    (chat_bytes("word " * 20000), 400),
    (b" " * 300_000, 413),
)


def address_of(site: Attune) -> Address:
    return Address("127.0.0.1", int(site.running.url.rpartition(":")[2]))


class Soak:
    """The load and its looks."""

    def __init__(self, site: Attune, checkpoints: tuple[Manifest, Manifest], seconds: float, seed: int) -> None:
        self._address = address_of(site)
        self._site = site
        self._checkpoints = checkpoints
        self._seconds = seconds
        self._random = random.Random(seed)
        self._open = asyncio.Event()
        self._busy = 0
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.looks: list[Vitals] = []

    async def run(self) -> None:
        """Raises what ends the server, or this program; what a client hears is counted instead."""
        await warm_up(self._address)
        self._open.set()
        plays = [
            *((self._converse, 0.6) for _ in range(2)),
            (self._ask_whole, 1.0),
            (self._leave, 0.7),
            (self._stall, 5.0),
            (self._ask_wrongly, 2.0),
            (self._scrape, 5.0),
            (self._swap, SWAP_SECONDS),
        ]
        tasks = [asyncio.create_task(self._repeat(*play)) for play in plays]
        try:
            await self._look_on()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _look_on(self) -> None:
        print("minute  MB      files  threads  tasks  answers  left  stalled  swaps  refused  errors", flush=True)
        started = time.monotonic()
        while (passed := time.monotonic() - started) < self._seconds:
            await asyncio.sleep(min(LOOK_SECONDS, max(1.0, self._seconds - passed)))
            async with self._rest():
                vitals = await at_rest(self._site.running.process.pid, self._address, next(iter(self.looks), None))
            self.looks.append(vitals)
            self._print((time.monotonic() - started) / 60, vitals)
            if vitals.requests:
                self.errors["requests at rest"] += 1

    def _print(self, minute: float, vitals: Vitals) -> None:
        counts = self.counts
        print(
            f"{minute:6.1f}  {vitals.megabytes:6.1f}  {vitals.descriptors:5}  {vitals.threads:7}  {vitals.tasks:5}  "
            f"{counts['answers']:7}  {counts['left']:4}  {counts['stalled']:7}  {counts['swaps']:5}  "
            f"{counts['refused']:7}  {sum(self.errors.values()):6}",
            flush=True,
        )

    @contextlib.asynccontextmanager
    async def _rest(self) -> AsyncIterator[None]:
        self._open.clear()
        while self._busy:  # noqa: ASYNC110 - it is a counter, and seldom looked at
            await asyncio.sleep(0.05)
        try:
            yield
        finally:
            self._open.set()

    async def _repeat(self, play: Callable[[], Awaitable[None]], pause: float) -> None:
        while True:
            await asyncio.sleep(pause * self._random.uniform(0.5, 1.5))
            await self._open.wait()
            self._busy += 1
            try:
                await play()
            except (OSError, EOFError, TimeoutError, ValueError, KeyError) as error:
                self.errors[f"{play.__name__}: {type(error).__name__} {error}"[:200]] += 1
            finally:
                self._busy -= 1

    async def _converse(self) -> None:
        """Two streamed answers on one connection, the second rated."""
        async with asyncio.timeout(PATIENCE), Wire.open(self._address) as wire:
            for _ in range(2):
                wire.send(request_bytes(CHAT, chat_bytes(self._prompt(), stream=True, max_tokens=60)))
                head = await wire.head()
                if self._refused(head):
                    return
                last = b""
                async for chunk in wire.chunks():
                    last = chunk
                self._expect(last == b"data: [DONE]\n\n", f"a stream ended with {last[:80]!r}")
                self.counts["answers"] += 1

    async def _ask_whole(self) -> None:
        reply = await exchange(self._address, CHAT, chat_bytes(self._prompt(), max_tokens=40))
        if not self._refused(reply):
            self._expect(reply.json()["model"] == f"policy@{reply.headers['x-policy-version']}", "two versions")
            self.counts["answers"] += 1

    async def _leave(self) -> None:
        await leave(self._address, self._random.choice(LEAVINGS))
        self.counts["left"] += 1

    async def _stall(self) -> None:
        self.counts["stalled"] += await stall(self._address, 2 * STALL_SECONDS + 1)

    async def _ask_wrongly(self) -> None:
        body, status = self._random.choice(WRONG)
        reply = await exchange(self._address, CHAT, body)
        self._expect(reply.status == status, f"status {reply.status}, not {status}, for {body[:60]!r}")

    async def _scrape(self) -> None:
        for path in ("/metrics", "/v1/status", "/v1/models", "/health/ready"):
            reply = await exchange(self._address, path)
            self._expect(reply.status == 200, f"{path} answered {reply.status}")

    async def _swap(self) -> None:
        turn = self.counts["swaps"] % 2
        version = await asyncio.to_thread(self._site.publish, self._checkpoints[turn])
        async with asyncio.timeout(PATIENCE):
            while await self._version() != version:  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(0.2)
        self.counts["swaps"] += 1

    async def _version(self) -> int:
        """The one in service."""
        return int((await exchange(self._address, "/health/ready")).json()["policy_version"])

    def _prompt(self) -> str:
        return self._random.choice(PROMPTS)

    def _refused(self, reply: Reply) -> bool:
        if reply.status == 429:
            self.counts["refused"] += 1
            return True
        self._expect(reply.status == 200, f"a chat answered {reply.status}")
        return reply.status != 200

    def _expect(self, true: bool, otherwise: str) -> None:
        if not true:
            self.errors[otherwise] += 1


def verdict(looks: list[Vitals], seconds: float) -> list[str]:
    """What is not flat, in words; nothing when all is. Prints the comparison."""
    quarter = len(looks) // 4
    if not quarter:
        print("too short for a comparison of its quarters")
        return []
    second, last = looks[quarter : 2 * quarter], looks[-quarter:]
    grown = statistics.mean(one.megabytes for one in last) - statistics.mean(one.megabytes for one in second)
    print(f"from the second quarter to the last: {grown:+.1f} MB, {grown / (seconds / 2 / 3600):+.1f} MB/hour", end="")
    wrong = [f"the memory grew by {grown:.1f} MB"] if grown > FLAT_MB else []
    for name in ("descriptors", "threads", "tasks"):
        before, after = (max(getattr(one, name) for one in some) for some in (second, last))
        print(f", {name} {before} -> {after}", end="")
        if after > before:
            wrong.append(f"{name} grew from {before} to {after}")
    print()
    return wrong


async def weather(site: Attune, disconnects: int, stalled: int) -> list[str]:
    """A storm by itself, with the vitals before and after; what was left behind, in words."""
    address = address_of(site)
    await warm_up(address)
    await storm(address, 2 * len(LEAVINGS), 2, STALL_SECONDS)
    before = await at_rest(site.running.process.pid, address)
    cut = await storm(address, disconnects, stalled, STALL_SECONDS)
    after = await at_rest(site.running.process.pid, address, before)
    print(f"{disconnects} disconnects and {stalled} stalled readers, {cut} of them cut off\n  {before}\n  {after}")
    wrong = [f"{stalled - cut} stalled readers were not cut off"] if cut < stalled else []
    for name in ("descriptors", "threads", "tasks", "requests"):
        if getattr(after, name) > getattr(before, name):
            wrong.append(f"{name} grew from {getattr(before, name)} to {getattr(after, name)}")
    if (await exchange(address, CHAT, chat_bytes(max_tokens=4))).status != 200:
        wrong.append("it does not answer any more")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m server.soak", description="A server under mixed load.")
    parser.add_argument("--minutes", type=float, default=60.0, help="how long the mixed load lasts")
    parser.add_argument("--disconnects", type=int, default=0, help="clients that leave in a storm before it")
    parser.add_argument("--stalled", type=int, default=0, help="readers that stall in that storm")
    parser.add_argument("--seed", type=int, default=0, help="seed of the load's dice")
    chosen = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="attune-soak-") as place:
            wrong = soak(chosen, Path(place))
    except AttuneError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    for sentence in wrong:
        print(f"soak: {sentence}", file=sys.stderr)
    return 1 if wrong else 0


def soak(chosen: argparse.Namespace, place: Path) -> list[str]:
    """What went wrong, in words."""
    model = load_settings(os.environ).model
    fetch_model(model, place / "model")
    limits: dict[str, Any] = {"max_running": RUNNING, "max_waiting": WAITING, "stall_seconds": STALL_SECONDS}
    with attune(place / "model", place, **limits) as site:
        wrong: list[str] = []
        if chosen.disconnects or chosen.stalled:
            wrong += asyncio.run(weather(site, chosen.disconnects, chosen.stalled))
        if chosen.minutes > 0:
            checkpoints = (site.seal(lambda to: fetch_model(model, to)), site.seal(lambda to: fetch_model(model, to)))
            load = Soak(site, checkpoints, 60 * chosen.minutes, chosen.seed)
            asyncio.run(load.run())
            wrong += [f"{count} x {error}" for error, count in load.errors.items()]
            wrong += verdict(load.looks, 60 * chosen.minutes)
        return wrong


if __name__ == "__main__":
    sys.exit(main())
