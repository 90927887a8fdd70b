"""uvicorn's HTTP protocol with an end to patience: nobody holds a connection by doing nothing.

A reader that takes nothing for `stall_seconds` is cut off, and so is a sender whose request stays unfinished that long.
Cut off means a reset: `close` would wait for the peer to take what is buffered, which is what it does not do.

A client that shuts down its sending side has gone. HTTP lets a server go on, but it cannot tell the two apart, and
most who do this have closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import socket
import struct
import sys
import termios
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT

SEND_BUFFER = 32 * 1024
"""Bytes that the kernel keeps for a reader that is behind. Left to itself it takes megabytes, and no stall shows."""
MAX_PIPELINED = 16
STALLED = "attune.stalled"
"""Key of a request's ASGI scope, there once its connection was cut off for a stall."""
RESET = struct.pack("ii", 1, 0)


def http_protocol(
    stall_seconds: float, on_stalled_reader: Callable[[], None], base: type[asyncio.Protocol] = AutoHTTPProtocol
) -> type[asyncio.Protocol]:
    """The class to give to `uvicorn.Config`; `base` is uvicorn's own, by default the faster of those installed."""
    fields = {"stall_seconds": stall_seconds, "on_stalled_reader": staticmethod(on_stalled_reader)}
    return type("ImpatientProtocol", (_Impatient, base), fields)


class _Impatient(asyncio.Protocol):
    """In front of uvicorn's class, whose attributes are named here."""

    stall_seconds: float
    on_stalled_reader: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    transport: asyncio.Transport
    flow: Any
    cycle: Any
    """The request that was read last."""

    _answering: Any = None
    """The request being answered, which is another one while requests are pipelined."""
    _reader: asyncio.TimerHandle | None = None
    _sender: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # Any byte that the kernel does not take pauses writing, so whatever stays unsent is watched.
        self.transport.set_write_buffer_limits(high=0)
        self._watch_sender()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_sender()
        self._see_past_pipeline()

    def eof_received(self) -> bool | None:
        if self._current is not None:
            self.transport.abort()
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._reader, self._sender):
            if timer is not None:
                timer.cancel()
        # uvicorn tells only the request that was read last.
        if (current := self._current) is not None:
            current.disconnected = True
            current.message_event.set()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reader()

    def resume_writing(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            self._reader = None
        super().resume_writing()

    @property
    def _current(self) -> Any:
        """The request whose answer is not complete, if there is one."""
        answering = self._answering or self.cycle
        return None if answering is None or answering.response_complete else answering

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        """Only the httptools class has this; the other reads no request before the last one is answered."""
        self._answering = cycle
        start: Any = super()
        start._start_asgi_task(cycle, app)

    def _see_past_pipeline(self) -> None:
        """uvicorn stops reading behind a pipelined request, and would not see the client leave."""
        waiting = getattr(self, "pipeline", ())
        if len(waiting) > MAX_PIPELINED:
            self.transport.abort()
        elif waiting and len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _watch_sender(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
            self._sender = None
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            self._sender = self.loop.call_later(self.stall_seconds, self._cut_off)

    def _watch_reader(self) -> None:
        self._reader = self.loop.call_later(self.stall_seconds, self._look_at_reader, self._untaken())

    def _look_at_reader(self, untaken: int) -> None:
        """A slow reader is not a stalled one."""
        if self._untaken() < untaken:
            self._watch_reader()
            return
        if (answering := self._answering or self.cycle) is not None:
            answering.scope[STALLED] = True
        self.on_stalled_reader()
        self._cut_off()

    def _untaken(self) -> int:
        """Bytes that the client has not acknowledged; where only Linux tells, those that the kernel has not taken."""
        queued = bytearray(4)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self.transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, queued)
        return self.transport.get_write_buffer_size() + int.from_bytes(queued, sys.byteorder)

    def _cut_off(self) -> None:
        # Without lingering the kernel drops what it still holds, too.
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()
