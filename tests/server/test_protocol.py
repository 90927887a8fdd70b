"""The impatient protocol on a loop of the test's own, over both of uvicorn's classes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from server.protocol import SEND_BUFFER, STALLED, http_protocol
from server.wire import Address, Wire, request_bytes

STALL_SECONDS = 0.3
CHUNK = b"x" * 8192
Base = type[asyncio.Protocol]


class Flood:
    """Sends chunks until its client is gone, and notes how that came."""

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.gone = asyncio.Event()

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        sending = asyncio.create_task(self._send(send))
        while (await receive())["type"] != "http.disconnect":
            pass
        sending.cancel()
        self.gone.set()

    async def _send(self, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(10_000):
            await send({"type": "http.response.body", "body": CHUNK, "more_body": True})
            await asyncio.sleep(0.001)


def play(base: Base, scenario: Callable[[Flood, Wire, list[int]], Awaitable[None]]) -> None:
    """One client of a server with `base`; the list grows with each reader that stalled."""

    async def scene() -> None:
        flood, stalls = Flood(), list[int]()
        async with asyncio.timeout(20), serving(flood, base, stalls) as address:
            async with Wire.open(address, receive_buffer=2048) as wire:
                wire.send(request_bytes("/"))
                await wire.head()
                await scenario(flood, wire, stalls)

    asyncio.run(scene())


@contextlib.asynccontextmanager
async def serving(app: Any, base: Base, stalls: list[int]) -> AsyncIterator[Address]:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    listener.bind(("127.0.0.1", 0))
    protocol = http_protocol(STALL_SECONDS, lambda: stalls.append(1), base)
    server = uvicorn.Server(uvicorn.Config(app, http=protocol, lifespan="off", log_config=None))
    running = asyncio.create_task(server._serve(sockets=[listener]))
    try:
        while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
            await asyncio.sleep(0.01)
        yield Address(*listener.getsockname())
    finally:
        server.should_exit = server.force_exit = True
        await running


both_classes = pytest.mark.parametrize("base", [HttpToolsProtocol, H11Protocol])


@both_classes
def test_a_reader_that_takes_nothing_is_cut_off_and_marked(base: Base) -> None:
    async def scenario(flood: Flood, wire: Wire, stalls: list[int]) -> None:
        wire.stop_reading()
        await flood.gone.wait()
        assert len(stalls) == 1
        assert STALLED in flood.scopes[0]
        wire.read_again()
        assert await wire.is_cut()

    play(base, scenario)


@both_classes
def test_a_slow_reader_is_not_a_stalled_one(base: Base) -> None:
    async def scenario(flood: Flood, wire: Wire, stalls: list[int]) -> None:
        # A little now and then, for three times the patience; the server sends much more than that.
        wire.stop_reading()
        for _ in range(18):
            await asyncio.sleep(STALL_SECONDS / 6)
            wire.read_again()
            await asyncio.sleep(0.01)
            wire.stop_reading()
        assert stalls == []
        assert not flood.gone.is_set()

    play(base, scenario)


@both_classes
@pytest.mark.parametrize("leave", [Wire.half_close, Wire.reset])
def test_a_client_that_leaves_is_seen_at_once_even_behind_a_full_buffer(
    base: Base, leave: Callable[[Wire], None]
) -> None:
    async def scenario(flood: Flood, wire: Wire, stalls: list[int]) -> None:
        wire.stop_reading()
        await asyncio.sleep(STALL_SECONDS / 3)
        leave(wire)
        await flood.gone.wait()
        assert stalls == []
        assert STALLED not in flood.scopes[0]

    play(base, scenario)


def test_a_client_that_leaves_behind_a_pipelined_request_is_seen() -> None:
    async def scenario(flood: Flood, wire: Wire, stalls: list[int]) -> None:
        wire.send(request_bytes("/second"))
        await wire.some_bytes()
        wire.reset()
        await flood.gone.wait()
        assert len(flood.scopes) == 1

    play(HttpToolsProtocol, scenario)
