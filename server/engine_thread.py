"""The thread that owns the engine: commands go in between two steps, tokens come out one call a step.

It sleeps when there is nothing to do. What it finds out is told to a Listener on the event loop, through
`call_soon_threadsafe`. `abort` is synchronous and may be called from any thread, because the frameworks above cancel
every await in cleanup. Knows no HTTP, no store and no metrics.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Protocol

import structlog

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import Sequence, StepOutput
from rlhf_core.errors import AttuneError, ConflictError
from rlhf_core.models.load import LoadedPolicy
from server.errors import GenerationFailedError
from server.generation import Generation, GivenUp

Ending = AttuneError | GivenUp


class Listener(Protocol):
    """Called on the event loop's thread. Times are monotonic seconds."""

    def deliver(self, outputs: list[StepOutput], at: float) -> None:
        """What one step did."""

    def end(self, request_id: str, sequence: Sequence | None, ending: Ending) -> None:
        """A request ended without a last token."""

    def drained(self, seconds: float) -> None:
        """The last answer of the policy before the flip ended, `seconds` after it."""


class EngineThread:
    """Its methods may be called from any thread; those with an underscore run in this one."""

    def __init__(self, engine: Engine, listener: Listener) -> None:
        self._engine = engine
        self._listener = listener
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._sequences: dict[str, Sequence] = {}
        self._unscheduled: dict[str, tuple[Sequence, Generation]] = {}
        self._staged: tuple[LoadedPolicy, asyncio.Future[None]] | None = None
        self._flipped_at: float | None = None
        self.cached_tokens = 0
        """Tokens in the KV cache. Counted here, because nobody else may walk what this thread changes."""

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join(timeout=5.0)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, generation: Generation) -> None:
        self._commands.put(partial(self._submit, generation))

    def abort(self, request_id: str, ending: Ending) -> None:
        """End a request before the next step; harmless when it has ended already."""
        self._commands.put(partial(self._abort, request_id, ending))

    def swap(self, policy: LoadedPolicy, flipped: asyncio.Future[None]) -> None:
        """Flip as soon as no older set drains, then settle `flipped`."""
        self._commands.put(partial(self._stage, policy, flipped))

    def _run(self) -> None:
        while self._obey(wait=not self._engine.has_work):
            self._try_swap()
            if self._engine.has_work:
                self._step()
            self._note_drained()
            self.cached_tokens = self._engine.cached_tokens

    def _obey(self, *, wait: bool) -> bool:
        """Carry out all commands that are there; False after the last one. Sleeps for one when idle."""
        with contextlib.suppress(queue.Empty):
            command = self._commands.get(block=wait)
            while command is not None:
                command()
                command = self._commands.get_nowait()
            return False
        return True

    def _step(self) -> None:
        started = time.monotonic()
        try:
            outputs = self._engine.step()
        except Exception as error:
            structlog.get_logger().error("a step of the engine failed", exc_info=error)
            self._fail_step()
            return
        self._note_scheduled(started)
        for output in outputs:
            if output.finished:
                self._sequences.pop(output.sequence.request.request_id, None)
        if outputs:
            self._post(partial(self._listener.deliver, outputs, time.monotonic()))

    def _note_scheduled(self, at: float) -> None:
        for request_id, (sequence, generation) in list(self._unscheduled.items()):
            if sequence.status != "waiting":
                generation.scheduled_at = at
                del self._unscheduled[request_id]

    def _note_drained(self) -> None:
        if self._flipped_at is not None and self._engine.draining is None:
            seconds, self._flipped_at = time.monotonic() - self._flipped_at, None
            self._post(partial(self._listener.drained, seconds))

    def _fail_step(self) -> None:
        """End what the failed step was computing; all of it when nothing ran, so that a bad step cannot repeat."""
        error = GenerationFailedError("the engine failed while it computed this answer")
        running = [name for name, sequence in self._sequences.items() if sequence.status == "running"]
        for request_id in running or list(self._sequences):
            self._abort(request_id, error)

    def _submit(self, generation: Generation) -> None:
        request = generation.request
        try:
            sequence = self._engine.submit(request)
        except AttuneError as error:
            self._post(partial(self._listener.end, request.request_id, None, error))
        except Exception as error:
            structlog.get_logger().error("the engine refused a request", exc_info=error)
            failed = GenerationFailedError("the engine could not take this request")
            self._post(partial(self._listener.end, request.request_id, None, failed))
        else:
            self._sequences[request.request_id] = sequence
            self._unscheduled[request.request_id] = sequence, generation

    def _abort(self, request_id: str, ending: Ending) -> None:
        sequence = self._sequences.pop(request_id, None)
        self._unscheduled.pop(request_id, None)
        if sequence is None:
            return
        try:
            self._engine.abort(request_id)
        except Exception as failure:
            structlog.get_logger().error("the engine could not abort a request", exc_info=failure)
        self._post(partial(self._listener.end, request_id, sequence, ending))

    def _stage(self, policy: LoadedPolicy, flipped: asyncio.Future[None]) -> None:
        self._staged = (policy, flipped)

    def _try_swap(self) -> None:
        """Flip to the staged policy, unless an older set still drains: then this is asked again after the next step."""
        if self._staged is None:
            return
        policy, flipped = self._staged
        failure: Exception | None = None
        try:
            self._engine.swap(policy)
        except ConflictError:
            return
        except Exception as error:
            failure = error
        else:
            self._flipped_at = time.monotonic()
        self._staged = None
        self._post(partial(_settle, flipped, failure))

    def _post(self, callback: Callable[[], None]) -> None:
        # The loop is closed only when the process ends; nobody is left to read then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if not future.done():
        future.set_exception(error) if error else future.set_result(None)
