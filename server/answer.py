"""Answers on their way: one to each prompt and choice of a request, and the set of them that one response carries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from rlhf_core.engine.sequence import StepOutput
from rlhf_core.errors import AttuneError
from rlhf_core.records import Interaction
from server.engine_thread import Ending
from server.errors import ClientGoneError, GenerationFailedError
from server.generation import Generation

Arrival = tuple[int, list[StepOutput] | Interaction]
"""The index of an answer, and what came of it: tokens, none after a silence, or at its end its record."""


@dataclass(frozen=True, eq=False)
class Answer:
    """One interaction on its way."""

    interaction: Interaction
    """As opened, with its messages even where they are not stored."""
    generation: Generation
    record: asyncio.Task[Interaction]
    """Ends when the interaction is stored as it ended; raises what kept it from being."""

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.generation.outputs)

    @property
    def fingerprint(self) -> str:
        policy = self.generation.policy
        return f"policy-{policy.policy_version}-{policy.weights_sha256[:12]}"

    @property
    def model(self) -> str:
        return f"policy@{self.generation.policy.policy_version}"

    async def begun(self) -> None:
        """Wait for the first token. Raises when the answer ended without one."""
        await self.generation.first_token()
        if not self.generation.outputs:
            await self.stored()

    async def stored(self) -> Interaction:
        """Wait until the record is complete. Raises what ended the answer early, or kept its record from the store."""
        record = await asyncio.shield(self.record)
        if self.generation.error is not None:
            raise self.generation.error
        if self.generation.aborted:
            raise ClientGoneError("the request was given up")
        return record


@dataclass(frozen=True, eq=False)
class AnswerSet:
    """The answers of one response, all of one policy. They stand or fall together."""

    answers: tuple[Answer, ...]
    """By index: all to the first prompt, then all to the second, ..."""
    n: int
    """Answers to each prompt."""
    abort: Callable[[str, Ending], None]
    """Ends the generation of an interaction."""

    @property
    def first(self) -> Answer:
        return self.answers[0]

    @property
    def prompt_tokens(self) -> int:
        """Each prompt once, however many answers it has."""
        return sum(len(answer.generation.request.prompt_token_ids) for answer in self.answers[:: self.n])

    @property
    def cached_tokens(self) -> int:
        """Of the prompts, those that an earlier conversation had already read."""
        sequences = [answer.generation.sequence for answer in self.answers[:: self.n]]
        return sum(sequence.reused for sequence in sequences if sequence is not None)

    @property
    def tokens(self) -> int:
        """Of all answers so far."""
        return sum(len(answer.generation.outputs) for answer in self.answers)

    def give_up(self, ending: Ending) -> None:
        """End those that have not ended."""
        for answer in self.answers:
            if not answer.generation.ended.is_set():
                self.abort(answer.interaction.interaction_id, ending)

    def fail(self, error: Exception) -> None:
        """End those that have not ended, because of what happened to the response."""
        if isinstance(error, ClientGoneError):
            self.give_up("client_gone")
        elif isinstance(error, AttuneError):
            self.give_up(error)
        else:
            self.give_up(GenerationFailedError("the response failed that this answer was part of"))

    async def begun(self) -> None:
        """Wait for the first token of the first answer, which is scheduled before the others."""
        try:
            await self.first.begun()
        except Exception as error:
            self.fail(error)
            raise

    async def stored(self) -> list[Interaction]:
        """All records, by index. Gives the others up and raises as soon as one answer failed."""
        try:
            return await asyncio.gather(*(answer.stored() for answer in self.answers))
        except Exception as error:
            self.fail(error)
            raise

    async def arrivals(self) -> AsyncIterator[Arrival]:
        """Everything in the order in which it comes, except that no answer begins before those with a lower index:
        OpenAI's client counts choices by their first chunks. Raises as soon as one answer failed.
        """
        if len(self.answers) == 1:
            async for arrival in _arrivals(0, self.first):
                yield arrival
            return
        arrived: asyncio.Queue[Arrival | Exception] = asyncio.Queue()
        readers = [asyncio.create_task(_read(*each, arrived)) for each in enumerate(self.answers)]
        beginnings = _Beginnings()
        try:
            going = len(readers)
            while going:
                news = await arrived.get()
                if isinstance(news, Exception):
                    raise news
                going -= isinstance(news[1], Interaction)
                for arrival in beginnings.release(news):
                    yield arrival
        finally:
            for reader in readers:
                reader.cancel()


class _Beginnings:
    """Holds an answer back until those before it have begun."""

    def __init__(self) -> None:
        self._begun = 0
        self._held: dict[int, list[Arrival]] = {}

    def release(self, arrival: Arrival) -> list[Arrival]:
        """What may go out now that this has arrived."""
        index, what = arrival
        if index < self._begun or not what:
            return [arrival]
        self._held.setdefault(index, []).append(arrival)
        released: list[Arrival] = []
        while self._begun in self._held:
            released += self._held.pop(self._begun)
            self._begun += 1
        return released


async def _arrivals(index: int, answer: Answer) -> AsyncIterator[Arrival]:
    async for batch in answer.generation.batches():
        yield index, batch
    yield index, await answer.stored()


async def _read(index: int, answer: Answer, arrived: asyncio.Queue[Arrival | Exception]) -> None:
    try:
        async for arrival in _arrivals(index, answer):
            arrived.put_nowait(arrival)
    except Exception as error:
        arrived.put_nowait(error)
