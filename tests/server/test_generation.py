"""Readers of one answer: what each gets, and that a silence is told."""

from __future__ import annotations

import asyncio
import time

import pytest

from rlhf_core.engine.sequence import GenerationRequest, Sequence, StepOutput
from rlhf_core.records import Sampling
from server import generation as subject
from server.generation import Generation


def output(sequence: Sequence, text: str, finished: bool = False) -> StepOutput:
    return StepOutput(sequence, 7, -1.0, text, finished)


def make() -> tuple[Generation, Sequence]:
    request = GenerationRequest("a", (5,), Sampling(max_tokens=9))
    return Generation(request), Sequence(request, 9)


def test_a_silence_is_an_empty_batch_and_news_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "PING_SECONDS", 0.2)

    async def scenario() -> None:
        generation, sequence = make()
        batches = generation.batches()
        started = time.monotonic()
        assert await anext(batches) == []
        assert await anext(batches) == []
        assert time.monotonic() - started >= 0.4
        generation.take(output(sequence, "x"))
        assert [one.text for one in await anext(batches)] == ["x"]
        asyncio.get_running_loop().call_later(0.05, generation.take, output(sequence, "y", finished=True))
        assert [one.text for one in await anext(batches)] == ["y"]
        assert [batch async for batch in batches] == []

    asyncio.run(scenario())


def test_a_reader_that_is_cancelled_leaves_no_timer_behind() -> None:
    async def scenario() -> None:
        generation, sequence = make()

        async def read() -> list[str]:
            return [one.text async for batch in generation.batches() for one in batch]

        gone, patient = asyncio.create_task(read()), asyncio.create_task(read())
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        generation.take(output(sequence, "x"))
        generation.take(output(sequence, "y", finished=True))
        assert await patient == ["x", "y"]
        assert generation._readers == []

    asyncio.run(scenario())
