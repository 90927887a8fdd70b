"""What a server process holds, from outside: /metrics, and /proc of Linux."""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass

from server.wire import Address, exchange, scrape

BURST = 64


@dataclass(frozen=True)
class Vitals:
    """What a process holds."""

    megabytes: float
    descriptors: int
    threads: int
    tasks: int
    """Of its event loop."""
    requests: int
    """Running, waiting, or followed."""

    @classmethod
    async def of(cls, process_id: int, address: Address) -> Vitals:
        status = _status(process_id)
        series = await scrape(address)
        requests = [value for name, value in series.items() if name.startswith(("num_requests_", "inflight_requests"))]
        return cls(
            megabytes=int(status["VmRSS"].split()[0]) / 1024,
            descriptors=len(os.listdir(f"/proc/{process_id}/fd")),
            threads=int(status["Threads"]),
            tasks=int(series["event_loop_tasks"]),
            requests=int(sum(requests)),
        )


async def warm_up(address: Address) -> None:
    """Let the server open every connection to its store, and start every thread, that it ever will at once."""
    await asyncio.gather(*(exchange(address, "/v1/status") for _ in range(BURST)))


async def at_rest(process_id: int, address: Address, like: Vitals | None = None) -> Vitals:
    """The vitals once nothing runs, and no more tasks and descriptors are left than in `like`; or after ten seconds."""
    for _ in range(100):
        vitals = await Vitals.of(process_id, address)
        settled = like is None or (vitals.tasks <= like.tasks and vitals.descriptors <= like.descriptors)
        if vitals.requests == 0 and settled:
            break
        await asyncio.sleep(0.1)
    return vitals


def _status(process_id: int) -> dict[str, str]:
    with open(f"/proc/{process_id}/status") as lines:
        return dict(line.split(":", 1) for line in lines)
