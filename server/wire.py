"""One HTTP/1.1 connection by hand: what a client can do wrong, or time exactly, needs the socket itself.

For measurements and tests. Knows as much HTTP as this server speaks, and no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"
EXCHANGE_SECONDS = 60.0
NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Address:
    host: str
    port: int


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    def json(self) -> Any:
        return json.loads(self.body)


def request_bytes(path: str, body: bytes | None = None, *, announced: int | None = None) -> bytes:
    """A GET, or a POST of `body`; `announced` is its content-length where that should not be the truth."""
    if body is None:
        return f"GET {path} HTTP/1.1\r\nhost: attune\r\n\r\n".encode()
    length = len(body) if announced is None else announced
    head = f"POST {path} HTTP/1.1\r\nhost: attune\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    return head.encode() + body


def chat_bytes(content: str = "hello", **fields: object) -> bytes:
    return json.dumps({"messages": [{"role": "user", "content": content}], **fields}).encode()


class Wire:
    """A connection. Leaving its context closes it in order, unless it was ended another way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        transport = writer.transport
        assert isinstance(transport, asyncio.Transport)
        self._connection = transport

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, address: Address, *, receive_buffer: int | None = None) -> AsyncIterator[Wire]:
        """`receive_buffer`, in bytes, is what the kernel takes in for a reader that does not read."""
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (address.host, address.port))
            reader, writer = await asyncio.open_connection(sock=connection)
        except BaseException:
            connection.close()
            raise
        try:
            yield cls(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    def send(self, content: bytes) -> None:
        self._writer.write(content)

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on listening."""
        self._writer.write_eof()

    def stop_reading(self) -> None:
        self._connection.pause_reading()

    def read_again(self) -> None:
        self._connection.resume_reading()

    def reset(self) -> None:
        """Vanish: what the peer sends from now on is answered with a reset."""
        self._writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        self._connection.abort()

    async def some_bytes(self) -> bytes:
        """Whatever comes next."""
        return await self._reader.read(1)

    async def rest(self) -> bytes:
        """All until the server ends the connection, in whatever way."""
        received = b""
        with contextlib.suppress(OSError):
            while chunk := await self._reader.read(65536):
                received += chunk
        return received

    async def head(self) -> Reply:
        """Status and headers. Raises OSError or EOFError when the connection ends first."""
        first, *lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").strip().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return Reply(int(first.split(" ")[1]), headers)

    async def reply(self) -> Reply:
        """A whole response."""
        head = await self.head()
        if "content-length" in head.headers:
            body = await self._reader.readexactly(int(head.headers["content-length"]))
        else:
            body = b"".join([chunk async for chunk in self.chunks()])
        return Reply(head.status, head.headers, body)

    async def some_chunks(self, count: int) -> None:
        """Read a response until `count` chunks of its body are there, or its body was not streamed."""
        if (await self.head()).headers.get("transfer-encoding") != "chunked":
            return
        async for _ in self.chunks():
            count -= 1
            if count == 0:
                return

    async def is_cut(self) -> bool:
        """Read a streamed body: whether the connection ends within it."""
        try:
            async for _ in self.chunks():
                pass
        except (OSError, EOFError):
            return True
        return False

    async def chunks(self) -> AsyncIterator[bytes]:
        """The chunks of a streamed body, each as the server wrote it. Raises EOFError when it is cut."""
        while size := int(await self._reader.readuntil(b"\r\n"), 16):
            yield (await self._reader.readexactly(size + 2))[:-2]
        await self._reader.readexactly(2)


async def exchange(address: Address, path: str, body: bytes | None = None) -> Reply:
    """One request on a connection of its own."""
    async with asyncio.timeout(EXCHANGE_SECONDS), Wire.open(address) as wire:
        wire.send(request_bytes(path, body))
        return await wire.reply()


async def scrape(address: Address) -> dict[str, float]:
    """The series of /metrics, named with their labels."""
    text = (await exchange(address, "/metrics")).body.decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}
