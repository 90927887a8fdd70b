"""One submitted request as the event loop sees it: its tokens as they arrive, and how it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from rlhf_core.engine.sequence import GenerationRequest, Sequence, StepOutput
from rlhf_core.errors import AttuneError
from rlhf_core.models.load import LoadedPolicy

PING_SECONDS = 15.0


class Generation:
    """Any number of readers may follow a request, each from the start.

    Holds at most `max_tokens` outputs: a reader that stalls costs that much memory and never a slot of the engine.
    """

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.submitted_at = time.monotonic()
        self.first_token_at: float | None = None
        """Unix seconds."""
        self.last_token_at = self.submitted_at
        self.outputs: list[StepOutput] = []
        self.sequence: Sequence | None = None
        """Read its final tokens only once this has ended: until then the engine's thread writes them."""
        self.error: AttuneError | None = None
        self.aborted = False
        self.ended = asyncio.Event()
        self._news = asyncio.Event()

    @property
    def policy(self) -> LoadedPolicy:
        """The policy that this answer is pinned to. Known from the first token on."""
        assert self.sequence is not None
        assert self.sequence.policy is not None
        return self.sequence.policy

    def take(self, output: StepOutput) -> None:
        self.sequence = output.sequence
        self.outputs.append(output)
        if output.finished:
            self.ended.set()
        self._tell()

    def end(self, sequence: Sequence | None, error: AttuneError | None) -> None:
        """End without a last token: aborted, or failed with `error`."""
        if self.ended.is_set():
            return
        self.sequence = sequence or self.sequence
        self.error = error
        self.aborted = error is None
        self.ended.set()
        self._tell()

    def _tell(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    async def first_token(self) -> None:
        """Wait until there is a token, or an end without one."""
        while not self.outputs and not self.ended.is_set():
            await self._news.wait()

    async def batches(self) -> AsyncIterator[list[StepOutput]]:
        """What arrived since the last look, all of it at once; an empty list after PING_SECONDS of silence."""
        seen = 0
        while True:
            if seen < len(self.outputs):
                fresh = self.outputs[seen:]
                seen += len(fresh)
                yield fresh
            elif self.ended.is_set():
                return
            elif not await self._news_in_time():
                yield []

    async def _news_in_time(self) -> bool:
        try:
            async with asyncio.timeout(PING_SECONDS):
                await self._news.wait()
        except TimeoutError:
            return False
        return True
