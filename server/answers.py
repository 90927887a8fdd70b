"""Interactions while they are being served: opened before the first token, completed before the last byte.

Completing is a task of its own, which no disconnect can cancel: the frameworks above cancel every await of a request
whose client has gone. A reader of an answer waits for its record, shielded, and sends the last byte only then.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog
from litestar.types import Receive

from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.errors import AttuneError, StoreUnavailableError
from rlhf_core.records import Interaction, InteractionStatus, Message, TokenIds
from rlhf_core.store.interactions import InteractionStore
from server.answer import Answer, AnswerSet
from server.generation import Generation
from server.protocol import STALLED
from server.serving import Serving

LATER_TRIES = 60
LATER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What an answer is asked for beside its sampling."""

    ignore_end: bool = False
    min_tokens: int = 0
    top_logprobs: int = 0


PLAIN = Options()


class Answers:
    """Starts answers and sees each through to its record."""

    def __init__(
        self, serving: Serving, interactions: InteractionStore, clock: Callable[[], float] = time.time
    ) -> None:
        self._serving = serving
        self._interactions = interactions
        self._clock = clock
        self._recording: set[asyncio.Task[Interaction]] = set()
        self._kept: set[asyncio.Task[None]] = set()

    async def prepare(
        self, interactions: Sequence[Interaction], prompts: Sequence[TokenIds], options: Options = PLAIN
    ) -> list[GenerationRequest]:
        """Open interactions, each with its prompt, that are to be answered by one policy. Hold admissions for them."""
        await asyncio.to_thread(self._open, interactions)
        group = interactions[0].interaction_id if len(interactions) > 1 else ""
        return [
            GenerationRequest(
                interaction.interaction_id,
                prompt,
                interaction.sampling,
                ignore_end=options.ignore_end,
                min_tokens=options.min_tokens,
                top_logprobs=options.top_logprobs,
                group=group,
            )
            for interaction, prompt in zip(interactions, prompts, strict=True)
        ]

    def _open(self, interactions: Sequence[Interaction]) -> None:
        for interaction in interactions:
            self._interactions.open(as_stored(interaction))

    def start(self, interaction: Interaction, request: GenerationRequest) -> Answer:
        """Submit what was prepared; from here the record is completed whatever happens."""
        generation = self._serving.submit(request)
        record = asyncio.create_task(self._complete(interaction, generation))
        self._recording.add(record)
        record.add_done_callback(self._recorded)
        return Answer(interaction, generation, record)

    async def ask(
        self, interactions: Sequence[Interaction], prompts: Sequence[TokenIds], *, n: int, options: Options = PLAIN
    ) -> AnswerSet:
        """Open and submit the interactions of one response, `n` to each prompt in turn. Hold admissions for them."""
        requests = await self.prepare(interactions, prompts, options)
        started = tuple(self.start(*each) for each in zip(interactions, requests, strict=True))
        return AnswerSet(started, n, self._serving.abort)

    def abort_when_gone(self, answers: AnswerSet, receive: Receive, scope: Mapping[str, Any]) -> None:
        """Give the answers up as soon as `receive`, read to the end of the body, reports a disconnect.

        It reports one after a complete response as well, so a watch always ends.
        """
        self._keep(asyncio.create_task(_watch(answers, receive, scope)))

    def _keep(self, task: asyncio.Task[None]) -> None:
        """The loop itself holds tasks weakly."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)

    async def settle(self) -> None:
        """Wait for the records of all answers; they have ended by now."""
        await asyncio.gather(*self._recording, return_exceptions=True)
        for task in self._kept:
            task.cancel()

    async def _complete(self, opened: Interaction, generation: Generation) -> Interaction:
        await generation.ended.wait()
        record = as_stored(completed(opened, generation, self._clock()))
        try:
            await asyncio.to_thread(self._interactions.complete, record)
        except StoreUnavailableError:
            self._keep(asyncio.create_task(self._complete_later(record)))
            raise
        return record

    async def _complete_later(self, record: Interaction) -> None:
        """The caller was told that the answer failed; its record should still not stay open when the store returns."""
        for _ in range(LATER_TRIES):
            await asyncio.sleep(LATER_SECONDS)
            with contextlib.suppress(StoreUnavailableError):
                return await asyncio.to_thread(self._interactions.complete, failed(record))
        return None

    def _recorded(self, task: asyncio.Task[Interaction]) -> None:
        self._recording.discard(task)
        # Looked at here as well: of an answer whose reader has gone nobody else asks how it ended.
        if not task.cancelled() and (error := task.exception()) is not None:
            structlog.get_logger().error("an interaction was not completed in the store", error=str(error))


async def _watch(answers: AnswerSet, receive: Receive, scope: Mapping[str, Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    answers.give_up("stalled" if scope.get(STALLED) else "client_gone")


def completed(opened: Interaction, generation: Generation, now: float) -> Interaction:
    """The record of an ended generation, with the ids and logprobs that the engine drew."""
    sequence = generation.sequence
    ended = msgspec.structs.replace(
        opened,
        status=_status(generation.error, aborted=generation.aborted),
        prompt_token_ids=generation.request.prompt_token_ids,
        completed_at=now,
        first_token_at=generation.first_token_at,
    )
    if sequence is None or sequence.policy is None:
        return ended
    return msgspec.structs.replace(
        ended,
        response=sequence.text,
        token_ids=tuple(sequence.token_ids),
        logprobs=tuple(sequence.logprobs),
        policy_version=sequence.policy.policy_version,
        checkpoint_id=sequence.policy.checkpoint_id,
        weights_sha256=sequence.policy.weights_sha256,
        finish_reason=sequence.finish_reason,
    )


def failed(record: Interaction) -> Interaction:
    """The record of an answer whose end the caller never saw."""
    return msgspec.structs.replace(record, status="error") if record.status == "done" else record


def as_stored(interaction: Interaction) -> Interaction:
    """Without its content where the caller asked that none be kept."""
    if interaction.stored:
        return interaction
    no_messages: tuple[Message, ...] = ()
    return msgspec.structs.replace(
        interaction,
        messages=no_messages,
        response="",
        prompt_token_ids=(),
        token_ids=(),
        logprobs=(),
        metadata={},
        sampling=msgspec.structs.replace(interaction.sampling, stop=()),
    )


def _status(error: AttuneError | None, *, aborted: bool) -> InteractionStatus:
    if error is not None:
        return "error"
    return "aborted" if aborted else "done"
