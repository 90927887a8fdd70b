"""Comparisons: two answers of the live policy to one prompt, shown blind.

The server draws the side by a coin and stores the draw. Answers on their way are followed from memory, by any number of
readers; once both are stored their buffers are dropped and a reader is served from the store.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Any

import msgspec

from rlhf_core.errors import ConflictError
from rlhf_core.records import Comparison, Interaction, Message, Sampling, Side
from rlhf_core.store.feedback import FeedbackStore
from rlhf_core.store.interactions import InteractionStore
from server.answer import Answer
from server.answers import Answers
from server.errors import GenerationFailedError, fault_of
from server.generation import PING_SECONDS
from server.identity import new_id
from server.serving import Serving

P_LEFT = 0.5

Event = dict[str, Any]
Sides = dict[Side, Interaction]


class Comparisons:
    """Starts comparisons and lets people follow them."""

    def __init__(
        self,
        serving: Serving,
        answers: Answers,
        interactions: InteractionStore,
        feedback: FeedbackStore,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._serving = serving
        self._answers = answers
        self._interactions = interactions
        self._feedback = feedback
        self._clock = clock
        self._live: dict[str, dict[Side, Answer]] = {}

    async def start(
        self, messages: tuple[Message, ...], rater: str, max_tokens: int, metadata: dict[str, str]
    ) -> Comparison:
        """Store the comparison and its two interactions, then submit both."""
        comparison_id = new_id("cmp")
        first, second = (
            Interaction(
                interaction_id=new_id("chatcmpl"),
                created_at=self._clock(),
                rater=rater,
                messages=messages,
                sampling=Sampling(max_tokens=max_tokens, seed=secrets.randbits(63)),
                comparison_id=comparison_id,
                conversation_id=metadata.get("conversation_id", ""),
                metadata=metadata,
            )
            for _ in range(2)
        )
        side_seed = secrets.randbits(32)
        left, right = (first, second) if Random(side_seed).random() < P_LEFT else (second, first)
        comparison = Comparison(
            comparison_id=comparison_id,
            created_at=self._clock(),
            rater=rater,
            messages=messages,
            left=left.interaction_id,
            right=right.interaction_id,
            side_seed=side_seed,
            p_left=P_LEFT,
        )
        with self._serving.admission(2):
            prompt = await self._serving.tokenise(messages)
            requests = await self._answers.prepare((left, right), (prompt, prompt))
            await asyncio.to_thread(self._feedback.open_comparison, comparison)
            started = [self._answers.start(*side) for side in zip((left, right), requests, strict=True)]
        self._follow(comparison_id, {"left": started[0], "right": started[1]})
        return comparison

    def _follow(self, comparison_id: str, sides: dict[Side, Answer]) -> None:
        self._live[comparison_id] = sides

        def drop_when_stored(_: asyncio.Task[Interaction]) -> None:
            if all(answer.record.done() for answer in sides.values()):
                self._live.pop(comparison_id, None)

        for answer in sides.values():
            answer.record.add_done_callback(drop_when_stored)

    async def events(self, comparison_id: str) -> AsyncIterator[Event | None]:
        """What has been said so far, then what comes, by slot; None after a silence. Ends with done, unless a side
        failed."""
        sides = self._live.get(comparison_id)
        if sides is None:
            for stored in stored_events(await asyncio.to_thread(self.sides, comparison_id)):
                yield stored
            return
        arrived: asyncio.Queue[Event | None] = asyncio.Queue()
        readers = [asyncio.create_task(_read(slot, answer, arrived)) for slot, answer in sides.items()]
        try:
            async for event in _until_done(arrived, len(readers)):
                yield event
        finally:
            for reader in readers:
                reader.cancel()

    def sides(self, comparison_id: str) -> Sides:
        """The interactions by slot, as stored. Blocking."""
        comparison = self._feedback.comparison(comparison_id)
        return {"left": self._interactions.get(comparison.left), "right": self._interactions.get(comparison.right)}

    def check_complete(self, comparison_id: str) -> Sides:
        """The interactions by slot. Raises ConflictError unless both are complete answers. Blocking."""
        sides = self.sides(comparison_id)
        for slot, interaction in sides.items():
            if interaction.status == "streaming":
                raise ConflictError(f"the {slot} answer is still streaming; choose when both are complete")
            if interaction.status != "done":
                raise ConflictError(f"the {slot} answer failed, so there is nothing to choose between")
        return sides


def stored_events(sides: Sides) -> list[Event]:
    """The events of a comparison that nobody here is computing, from its records."""
    events: list[Event] = []
    for slot, interaction in sides.items():
        if interaction.response:
            events.append({"slot": slot, "delta": interaction.response})
        if interaction.status == "done":
            events.append({"slot": slot, "finish_reason": interaction.finish_reason})
        else:
            events.append(_failed(slot, GenerationFailedError(f"the {slot} answer was not completed")))
    done = all(interaction.status == "done" for interaction in sides.values())
    return [*events, {"done": True}] if done else events


async def _until_done(arrived: asyncio.Queue[Event | None], readers: int) -> AsyncIterator[Event | None]:
    failed = False
    while readers:
        try:
            async with asyncio.timeout(PING_SECONDS):
                event = await arrived.get()
        except TimeoutError:
            yield None
            continue
        if event is None:
            readers -= 1
            continue
        failed |= "error" in event
        yield event
    if not failed:
        yield {"done": True}


async def _read(slot: Side, answer: Answer, arrived: asyncio.Queue[Event | None]) -> None:
    """Put one side's events, then None."""
    try:
        async for batch in answer.generation.batches():
            if text := "".join(output.text for output in batch):
                arrived.put_nowait({"slot": slot, "delta": text})
        record = await answer.stored()
        arrived.put_nowait({"slot": slot, "finish_reason": record.finish_reason})
    except Exception as error:
        arrived.put_nowait(_failed(slot, error))
    finally:
        arrived.put_nowait(None)


def _failed(slot: Side, error: Exception) -> Event:
    fault = fault_of(error)
    return {"slot": slot, "error": {"message": fault.message, "code": fault.code}}


def encode(event: Event | None) -> bytes:
    """One server-sent event; a comment for None."""
    return b": ping\n\n" if event is None else b"data: " + msgspec.json.encode(event) + b"\n\n"
