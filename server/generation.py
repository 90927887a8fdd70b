"""One submitted request as the event loop sees it: its tokens as they arrive, and how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, Literal, cast

from rlhf_core.engine.sequence import GenerationRequest, Sequence, StepOutput
from rlhf_core.errors import AttuneError
from rlhf_core.models.load import LoadedPolicy

PING_SECONDS = 15.0

GivenUp = Literal["client_gone", "stalled"]
"""Why nobody wants an answer any more: its reader hung up, or took nothing for too long."""


class Generation:
    """Any number of readers may follow a request, each from the start.

    Holds at most `max_tokens` outputs: a reader that stalls costs that much memory and never a slot of the engine.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.submitted_at = time.monotonic()
        self.scheduled_at = self.submitted_at
        """When it left the queue. Written once, by the engine's thread, before the first token is delivered."""
        self.first_token_at: float | None = None
        """Unix seconds."""
        self.began_at = self.submitted_at
        """The first token's monotonic time."""
        self.last_token_at = self.submitted_at
        self.outputs: list[StepOutput] = []
        self.sequence: Sequence | None = None
        """Read its final tokens only once this has ended: until then the engine's thread writes them."""
        self.error: AttuneError | None = None
        self.given_up: GivenUp | None = None
        self.ended = asyncio.Event()
        self._readers: list[_Reader] = []

    @property
    def aborted(self) -> bool:
        return self.given_up is not None

    @property
    def policy(self) -> LoadedPolicy:
        """The policy that this answer is pinned to. Known from the first token on; without its weights at the end."""
        assert self.sequence is not None
        assert self.sequence.policy is not None
        return self.sequence.policy

    def take(self, output: StepOutput) -> None:
        self.sequence = output.sequence
        self.outputs.append(output)
        if output.finished:
            self._close()
        self._tell()

    def end(self, sequence: Sequence | None, ending: AttuneError | GivenUp) -> None:
        """End without a last token: given up, or failed."""
        if self.ended.is_set():
            return
        self.sequence = sequence or self.sequence
        if isinstance(ending, AttuneError):
            self.error = ending
        else:
            self.given_up = ending
        self._close()
        self._tell()

    def _close(self) -> None:
        """A reader may be slow, or gone and not yet missed: it must not keep a replaced policy's weights in memory."""
        sequence = self.sequence
        if sequence is not None and sequence.policy is not None:
            sequence.policy = dataclasses.replace(sequence.policy, model=cast(Any, None), forward=None, base=None)
        self.ended.set()

    def _tell(self) -> None:
        for reader in self._readers:
            reader.tell()

    async def first_token(self) -> None:
        """Wait until there is a token, or an end without one."""
        with self._reading() as reader:
            while not self.outputs and not self.ended.is_set():
                await reader.news()

    async def batches(self) -> AsyncIterator[list[StepOutput]]:
        """What arrived since the last look, all of it at once; an empty list after PING_SECONDS of silence."""
        seen = 0
        with self._reading() as reader:
            while True:
                if seen < len(self.outputs):
                    fresh = self.outputs[seen:]
                    seen += len(fresh)
                    yield fresh
                elif self.ended.is_set():
                    return
                elif not await reader.news():
                    yield []

    @contextlib.contextmanager
    def _reading(self) -> Iterator[_Reader]:
        reader = _Reader(PING_SECONDS)
        self._readers.append(reader)
        try:
            yield reader
        finally:
            self._readers.remove(reader)
            reader.close()


class _Reader:
    """Sleeps until told, or until it slept for `patience` seconds.

    A bare future and one timer for all its sleeps, because it sleeps once a token: Event and timeout cost three times
    as much.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._asleep: asyncio.Future[bool] | None = None
        self._since = 0.0
        self._timer = self._loop.call_later(patience, self._look)

    async def news(self) -> bool:
        """False when none came for `patience` seconds."""
        self._since = self._loop.time()
        self._asleep = self._loop.create_future()
        return await self._asleep

    def tell(self, news: bool = True) -> None:
        asleep, self._asleep = self._asleep, None
        if asleep is not None and not asleep.done():
            asleep.set_result(news)

    def _look(self) -> None:
        slept = 0.0 if self._asleep is None else self._loop.time() - self._since
        if slept >= self._patience:
            self.tell(False)
            slept = 0.0
        self._timer = self._loop.call_later(self._patience - slept, self._look)

    def close(self) -> None:
        self._timer.cancel()
