"""The ways in which clients go away, and the one in which they stay and do nothing. For the soak and for tests."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from server.wire import CHAT, Address, Wire, chat_bytes, request_bytes

Leaving = Callable[[Wire], Awaitable[None]]

LONG = chat_bytes(stream=True, ignore_eos=True, max_tokens=4000)
LONG_WHOLE = chat_bytes(ignore_eos=True, max_tokens=4000)
SHORT = chat_bytes(ignore_eos=True, max_tokens=4)
WORDY = chat_bytes(stream=True, ignore_eos=True, max_tokens=4000, logprobs=True, top_logprobs=20)
FEW_CHUNKS = 5
A_WHILE = 0.05
AT_ONCE = 24
"""Clients of a storm at a time."""
TINY_BUFFER = 2048
PATIENCE = 60.0
"""Seconds after which a server that should have hung up has failed to."""


async def closes_before_the_answer(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG))


async def resets_before_the_answer(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG))
    wire.reset()


async def half_closes_before_the_answer(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG))
    wire.half_close()
    await wire.rest()


async def closes_in_the_stream(wire: Wire) -> None:
    await _begin(wire)


async def resets_in_the_stream(wire: Wire) -> None:
    await _begin(wire)
    wire.reset()


async def half_closes_in_the_stream(wire: Wire) -> None:
    await _begin(wire)
    wire.half_close()
    await wire.rest()


async def closes_while_a_whole_answer_is_made(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG_WHOLE))
    await asyncio.sleep(A_WHILE)


async def resets_while_a_whole_answer_is_made(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG_WHOLE))
    await asyncio.sleep(A_WHILE)
    wire.reset()


async def closes_within_its_headers(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG)[:40])
    await asyncio.sleep(A_WHILE)


async def closes_within_its_body(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG[:20], announced=len(LONG)))
    await asyncio.sleep(A_WHILE)


async def resets_within_its_body(wire: Wire) -> None:
    await closes_within_its_body(wire)
    wire.reset()


async def pipelines_and_closes(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG_WHOLE) + request_bytes(CHAT, LONG))
    await asyncio.sleep(A_WHILE)


async def pipelines_and_resets_in_the_stream(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG) + request_bytes(CHAT, LONG))
    await wire.some_chunks(FEW_CHUNKS)
    wire.reset()


async def asks_again_and_closes(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, SHORT))
    await wire.reply()
    await _begin(wire)


LEAVINGS: tuple[Leaving, ...] = (
    closes_before_the_answer,
    resets_before_the_answer,
    half_closes_before_the_answer,
    closes_in_the_stream,
    resets_in_the_stream,
    half_closes_in_the_stream,
    closes_while_a_whole_answer_is_made,
    resets_while_a_whole_answer_is_made,
    closes_within_its_headers,
    closes_within_its_body,
    resets_within_its_body,
    pipelines_and_closes,
    pipelines_and_resets_in_the_stream,
    asks_again_and_closes,
)


async def leave(address: Address, leaving: Leaving) -> None:
    """Play one. Whatever the server does about it is its right, but to do nothing for PATIENCE seconds."""
    async with asyncio.timeout(PATIENCE), Wire.open(address) as wire:
        with contextlib.suppress(OSError, EOFError):
            await leaving(wire)


async def stall(address: Address, seconds: float) -> bool:
    """Ask for a long stream, take no more than its beginning for `seconds`, then look whether the server cut it off.

    A server that has no place for the request refuses it, which is no stall: False.
    """
    async with asyncio.timeout(seconds + PATIENCE), Wire.open(address, receive_buffer=TINY_BUFFER) as wire:
        wire.send(request_bytes(CHAT, WORDY))
        if (await wire.head()).status != 200:
            return False
        wire.stop_reading()
        await asyncio.sleep(seconds)
        wire.read_again()
        return await wire.is_cut()


async def storm(address: Address, disconnects: int, stalled: int, stall_seconds: float) -> int:
    """Every way of leaving in turn, `disconnects` in all, then `stalled` readers; how many of those were cut off."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(play: Callable[[], Awaitable[Any]]) -> Any:
        async with places:
            return await play()

    leavings = (LEAVINGS[number % len(LEAVINGS)] for number in range(disconnects))
    await asyncio.gather(*(one(lambda way=way: leave(address, way)) for way in leavings))  # type: ignore[misc]
    cut = await asyncio.gather(*(one(lambda: stall(address, 2 * stall_seconds + 1)) for _ in range(stalled)))
    return sum(cut)


async def _begin(wire: Wire) -> None:
    wire.send(request_bytes(CHAT, LONG))
    await wire.some_chunks(FEW_CHUNKS)
