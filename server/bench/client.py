"""The load generator: HTTP/1.1 by hand, since it shares the cores with the server that it measures.

While a stream runs, its bytes are kept with the time they came and nothing else is done; what they say is read
afterwards. Chat completions only, one request at a time on a connection.
"""

from __future__ import annotations

import asyncio
import bisect
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import msgspec

REQUEST_SECONDS = 600.0
END_OF_HEAD = b"\r\n\r\n"
LAST_CHUNK = b"\r\n0\r\n\r\n"

Fields = Mapping[str, object]
"""The body of a chat completion, `messages` apart."""


class Delta(msgspec.Struct):
    content: str | None = None


class Choice(msgspec.Struct):
    delta: Delta


class CachedTokens(msgspec.Struct):
    cached_tokens: int | None = None


class Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: CachedTokens | None = None


class Frame(msgspec.Struct):
    """One server-sent event, as any of the servers writes it."""

    choices: list[Choice] = []
    usage: Usage | None = None
    system_fingerprint: str | None = None
    error: Any = None

    @property
    def text(self) -> str:
        return "".join(choice.delta.content or "" for choice in self.choices)


@dataclass
class Heard:
    """One answer as its client heard it. Times in monotonic seconds; complete once `ended_at` is set."""

    sent_at: float
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """What came, as it came: the head of the response first, then its body in chunks."""
    ended_at: float = 0.0
    status: int = 0
    version: str = ""
    """`x-policy-version`, where the server says it."""
    error: str = ""
    """Why there is no whole answer: a refusal, or what cut the stream."""
    frames: list[float] = field(default_factory=list)
    """When each frame with text arrived."""
    text: str = ""
    fingerprints: set[str] = field(default_factory=set)
    """Every one that a frame bears: of Attune's, each names one policy version."""
    usage: Usage = field(default_factory=Usage)

    @property
    def cut(self) -> bool:
        """Whether the answer began and then broke off."""
        return bool(self.error) and self.status == 200

    @property
    def first(self) -> float:
        """Seconds from the request to the first text. The answer must have one."""
        return self.frames[0] - self.sent_at

    @property
    def gaps(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.frames, self.frames[1:], strict=False)]

    def read(self) -> Heard:
        """Make sense of the bytes, and let go of them."""
        pieces, self.pieces = self.pieces, []
        done = False
        for at, payload in events(pieces):
            done = done or payload == b"[DONE]"
            if not done:
                self._note(at, msgspec.json.decode(payload, type=Frame))
        if self.status == 200 and not self.error and not (done or self.usage.completion_tokens):
            self.error = "the stream ended without its end"
        return self

    def _note(self, at: float, frame: Frame) -> None:
        if frame.error is not None:
            self.error = str(frame.error)[:300]
        if frame.usage is not None:
            self.usage = frame.usage
        if frame.system_fingerprint:
            self.fingerprints.add(frame.system_fingerprint)
        if frame.text:
            self.frames.append(at)
            self.text += frame.text


def events(pieces: Iterable[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """The data of each server-sent event of a response in chunks, with the time at which its last byte came."""
    ends, times, raw = [], [], bytearray()
    for at, piece in pieces:
        raw += piece
        ends.append(len(raw))
        times.append(at)
    body, marks, came = bytearray(), [], []
    for chunk_end, chunk in chunks(bytes(raw)):
        body += chunk
        marks.append(len(body))
        came.append(times[bisect.bisect_left(ends, chunk_end)])
    start = 0
    while (end := body.find(b"\n\n", start)) >= 0:
        if body.startswith(b"data: ", start):
            yield came[bisect.bisect_left(marks, end + 2)], bytes(body[start + 6 : end])
        start = end + 2


def chunks(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole chunks of a response, each with the offset where it ends."""
    head = raw.find(END_OF_HEAD)
    start = head + len(END_OF_HEAD)
    while head >= 0 and (line := raw.find(b"\r\n", start)) >= 0:
        size = int(raw[start:line].partition(b";")[0], 16)
        start, end = line + 4 + size, line + 2 + size
        if size == 0 or end > len(raw):
            return
        yield end, raw[line + 2 : end]


class Connection(asyncio.Protocol):
    """A keep-alive connection. `ask` sends a body and waits for the end of its response."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._heard: Heard | None = None
        self._ended: asyncio.Future[None] | None = None
        self._tail = b""
        self._chunked = True
        self._left = 0

    @property
    def usable(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    async def ask(self, request: bytes, heard: Heard) -> None:
        """Fill `heard`, which a caller may look at meanwhile. A connection that breaks is said in `heard.error`."""
        assert self._transport is not None, "not connected"
        self._heard, self._tail = heard, b""
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        try:
            await asyncio.wait_for(self._ended, REQUEST_SECONDS)
        except TimeoutError:
            heard.error = f"no end after {REQUEST_SECONDS:.0f} s"
            self._transport.abort()
        heard.ended_at = time.monotonic()

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        heard = self._heard
        if heard is None:
            return
        heard.pieces.append((time.monotonic(), data))
        if not heard.status:
            self._read_head(heard)
        elif self._chunked:
            self._tail = (self._tail + data)[-len(LAST_CHUNK) :]
        else:
            self._left -= len(data)
        if heard.status and (self._tail == LAST_CHUNK if self._chunked else self._left <= 0):
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        if self._heard is not None:
            self._heard.error = f"the connection broke: {error or 'closed by the server'}"
            self._end()

    def _read_head(self, heard: Heard) -> None:
        """Note what the head says, once it is whole."""
        raw = b"".join(data for _, data in heard.pieces)
        head, found, body = raw.partition(END_OF_HEAD)
        if not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        heard.status = int(first.split()[1])
        heard.version = headers.get("x-policy-version", "")
        self._chunked = headers.get("transfer-encoding") == "chunked"
        self._left = int(headers.get("content-length", 0)) - len(body)
        self._tail = (b"\r\n" + body)[-len(LAST_CHUNK) :]

    def _end(self) -> None:
        heard, self._heard = self._heard, None
        if heard is not None and heard.status not in (0, 200):
            heard.error = heard.error or f"status {heard.status}: {heard.pieces[-1][1][-300:].decode(errors='replace')}"
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


class User:
    """One who asks, waits for the answer and asks again, on one connection as long as it lasts."""

    def __init__(self, url: str, fields: Fields) -> None:
        self._where = urlsplit(url)
        self._fields = fields
        self._connection = Connection()
        self.heard: list[Heard] = []
        """Every answer, the one that is coming last. `read` them after the load."""

    async def ask(self, messages: list[dict[str, str]], **fields: object) -> Heard:
        request = self._request({"messages": messages, **self._fields, **fields})
        heard = Heard(time.monotonic())
        self.heard.append(heard)
        try:
            if not self._connection.usable:
                await self._connect()
            await self._connection.ask(request, heard)
        except OSError as error:
            heard.error, heard.ended_at = f"no connection: {error}", time.monotonic()
        except asyncio.CancelledError:
            self.leave()
            raise
        return heard

    def leave(self) -> None:
        self._connection.close()

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        _, self._connection = await loop.create_connection(
            Connection, str(self._where.hostname), self._where.port or 80
        )

    def _request(self, body: Mapping[str, object]) -> bytes:
        content = msgspec.json.encode(body)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {self._where.netloc}\r\ncontent-type: application/json\r\n"
        return f"{head}content-length: {len(content)}\r\n\r\n".encode() + content


async def ask_in_turn(user: User, prompts: Iterator[str], more: Callable[[int], bool]) -> None:
    """Ask while `more(how many were asked)`. Prompts are drawn from one iterator by all users: no two are the same."""
    while more(len(user.heard)):
        heard = await user.ask([{"role": "user", "content": next(prompts)}])
        if heard.error:
            # Nothing is gained by hammering a server that refuses.
            await asyncio.sleep(0.2)


async def load(
    url: str, users: int, prompts: Iterator[str], fields: Fields, more: Callable[[int], bool]
) -> list[Heard]:
    """A closed loop of `users`. Returns every answer, read."""
    crowd = [User(url, fields) for _ in range(users)]
    await asyncio.gather(*(ask_in_turn(user, prompts, more) for user in crowd))
    for user in crowd:
        user.leave()
    return [heard.read() for user in crowd for heard in user.heard]
