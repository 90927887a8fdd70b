"""The engine's thread, and the event loop's view of it.

One thread owns the Engine and sleeps when there is nothing to do. Commands go in through a queue and take effect
between two steps; tokens come out through `call_soon_threadsafe`, one call a step. `abort` is synchronous and may be
called from any thread, because the frameworks above cancel every await in cleanup. Knows no HTTP and no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import structlog

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import NO_TOKEN, GenerationRequest, StepOutput
from rlhf_core.engine.sequence import Sequence as EngineSequence
from rlhf_core.errors import AttuneError, ConflictError, ContextOverflowError, OverloadedError
from rlhf_core.models.load import LoadedPolicy, render_prompt
from rlhf_core.records import Message
from server.errors import DrainingError, GenerationFailedError
from server.generation import Generation
from server.metrics import Metrics

DRAIN_POLL_SECONDS = 0.05
LAST_POLLS = 10


def make_engine(policy: LoadedPolicy, max_running: int, max_waiting: int, max_context: int) -> Engine:
    """An engine for Serving, which admits: a burst that it hands over may all wait there for one step."""
    return Engine(
        policy,
        max_running=max_running,
        max_waiting=max_running + max_waiting,
        max_context=max_context,
        seed=secrets.randbits(63),
    )


class Serving:
    """Owns the engine in one thread. All methods but `abort` belong to the event loop's thread."""

    def __init__(self, engine: Engine, *, max_running: int, max_waiting: int, metrics: Metrics) -> None:
        self._engine = engine
        self._max_running = max_running
        self._capacity = max_running + max_waiting
        self._metrics = metrics
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._tokenising = ThreadPoolExecutor(1, "tokenise")
        self._followed: dict[str, Generation] = {}
        self._admitted = 0
        self._flipped_at: float | None = None
        self._stall = 0.0
        self.draining = False
        self.first_tokens: dict[int, float] = {}
        """Policy version to the Unix time of its first token here."""
        # The engine thread's own:
        self._sequences: dict[str, EngineSequence] = {}
        self._staged: tuple[LoadedPolicy, asyncio.Future[None]] | None = None

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def close(self) -> None:
        self._commands.put(None)
        self._thread.join(timeout=5.0)
        self._tokenising.shutdown(wait=False)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def policy(self) -> LoadedPolicy:
        """The policy that new answers start on."""
        return self._engine.active

    @property
    def draining_policy(self) -> LoadedPolicy | None:
        """The policy before it, while answers that began on it still run."""
        return self._engine.draining

    @property
    def max_context(self) -> int:
        return self._engine.max_context

    @property
    def inflight(self) -> int:
        return len(self._followed)

    @contextlib.contextmanager
    def admission(self, count: int = 1) -> Iterator[None]:
        """Hold places for `count` requests until they are submitted. Raises DrainingError or OverloadedError."""
        if self.draining:
            self._metrics.admission_rejections.labels("draining").inc()
            raise DrainingError
        if len(self._followed) + self._admitted + count > self._capacity:
            self._metrics.admission_rejections.labels("queue_full").inc()
            raise OverloadedError(f"{self._capacity} requests are running or waiting, which is all this server takes")
        self._admitted += count
        try:
            yield
        finally:
            self._admitted -= count

    async def tokenise(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Prompt token ids. One thread does them all: tokenisers are not safe to share, and the loop must not wait."""
        tokenizer = self.policy.tokenizer
        token_ids = await self._loop.run_in_executor(self._tokenising, render_prompt, tokenizer, messages)
        if len(token_ids) >= self.max_context:
            raise ContextOverflowError(len(token_ids), self.max_context)
        return tuple(token_ids)

    def submit(self, request: GenerationRequest) -> Generation:
        generation = Generation(request)
        self._followed[request.request_id] = generation
        self._commands.put(partial(self._submit, request))
        return generation

    def abort(self, request_id: str, error: AttuneError | None = None) -> None:
        """End a request before the next step. From any thread; harmless when it has ended already."""
        self._commands.put(partial(self._abort, request_id, error))

    async def swap(self, policy: LoadedPolicy) -> None:
        """Start new answers on `policy` from the next step on; waits while the set before it still drains."""
        flipped: asyncio.Future[None] = self._loop.create_future()
        self._commands.put(partial(self._stage, policy, flipped))
        await flipped
        self._flipped_at = time.monotonic()
        self._stall = 0.0

    async def drain(self, seconds: float, hurry: Callable[[], bool] = lambda: False) -> None:
        """Refuse new work, let answers run for `seconds`, then end the rest with DrainingError."""
        self.draining = True
        for _ in range(round(seconds / DRAIN_POLL_SECONDS)):
            if hurry() or (not self._followed and not self._admitted):
                break
            await asyncio.sleep(DRAIN_POLL_SECONDS)
        for _ in range(LAST_POLLS):
            for request_id in list(self._followed):
                self.abort(request_id, DrainingError())
            if not self._followed:
                break
            await asyncio.sleep(DRAIN_POLL_SECONDS)

    def scrape(self) -> None:
        """Bring the gauges up to date."""
        engine, metrics = self._engine, self._metrics
        metrics.num_requests_running.set(engine.running)
        metrics.num_requests_waiting.set(engine.waiting)
        metrics.kv_cache_usage.set(engine.running / self._max_running)
        versions = [g.policy.policy_version for g in self._followed.values() if g.outputs]
        active = versions.count(self.policy.policy_version)
        metrics.inflight_requests.labels("active").set(active)
        metrics.inflight_requests.labels("draining").set(len(versions) - active)

    # The event loop's end of what the engine thread posts.

    def _deliver(self, outputs: list[StepOutput], at: float) -> None:
        for output in outputs:
            generation = self._followed.get(output.sequence.request.request_id)
            if generation is None:
                continue
            if output.token_id == NO_TOKEN:
                error = GenerationFailedError(f"the policy failed: {output.sequence.error}")
                self._end(generation.request.request_id, output.sequence, error)
                continue
            self._note_token(generation, output, at)
            generation.take(output)
            if output.finished:
                self._forget(generation, at)

    def _note_token(self, generation: Generation, output: StepOutput, at: float) -> None:
        first = generation.first_token_at is None
        self._metrics.token(at - generation.last_token_at, first=first)
        if first:
            generation.first_token_at = time.time()
            policy = output.sequence.policy
            if policy is not None:
                self.first_tokens.setdefault(policy.policy_version, generation.first_token_at)
        elif self._flipped_at is not None and generation.last_token_at <= self._flipped_at <= at:
            self._stall = max(self._stall, at - generation.last_token_at)
            self._metrics.policy_swap_stall.set(self._stall)
        generation.last_token_at = at

    def _end(self, request_id: str, sequence: EngineSequence | None, error: AttuneError | None) -> None:
        generation = self._followed.get(request_id)
        if generation is not None:
            generation.end(sequence, error)
            self._forget(generation, time.monotonic())

    def _forget(self, generation: Generation, at: float) -> None:
        del self._followed[generation.request.request_id]
        request = generation.request
        self._metrics.ended(len(request.prompt_token_ids), len(generation.outputs), at - generation.submitted_at)
        sequence = generation.sequence
        if generation.error is not None:
            cause = "draining" if isinstance(generation.error, DrainingError) else "error"
            self._metrics.request_aborted.labels(cause).inc()
        elif generation.aborted:
            self._metrics.request_aborted.labels("client_gone").inc()
        elif sequence is not None:
            self._metrics.request_success.labels(sequence.finish_reason).inc()

    # The engine thread.

    def _run(self) -> None:
        while self._obey(wait=not self._engine.has_work):
            self._try_swap()
            if self._engine.has_work:
                self._step()

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
        try:
            outputs = self._engine.step()
        except Exception as error:
            structlog.get_logger().error("a step of the engine failed", exc_info=error)
            self._fail_step()
            return
        for output in outputs:
            if output.finished:
                self._sequences.pop(output.sequence.request.request_id, None)
        if outputs:
            self._post(partial(self._deliver, outputs, time.monotonic()))

    def _fail_step(self) -> None:
        """End what the failed step was computing; all of it when nothing ran, so that a bad step cannot repeat."""
        error = GenerationFailedError("the engine failed while it computed this answer")
        running = [name for name, sequence in self._sequences.items() if sequence.status == "running"]
        for request_id in running or list(self._sequences):
            self._abort(request_id, error)

    def _submit(self, request: GenerationRequest) -> None:
        try:
            self._sequences[request.request_id] = self._engine.submit(request)
        except AttuneError as error:
            self._post(partial(self._end, request.request_id, None, error))
        except Exception as error:
            structlog.get_logger().error("the engine refused a request", exc_info=error)
            failed = GenerationFailedError("the engine could not take this request")
            self._post(partial(self._end, request.request_id, None, failed))

    def _abort(self, request_id: str, error: AttuneError | None) -> None:
        sequence = self._sequences.pop(request_id, None)
        if sequence is None:
            return
        try:
            self._engine.abort(request_id)
        except Exception as failure:
            structlog.get_logger().error("the engine could not abort a request", exc_info=failure)
        self._post(partial(self._end, request_id, sequence, error))

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
        self._staged = None
        self._post(partial(_settle, flipped, failure))

    def _post(self, callback: Callable[[], None]) -> None:
        # The loop is closed only when the process ends; nobody is left to read then.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(callback)


def _settle(future: asyncio.Future[None], error: Exception | None) -> None:
    if not future.done():
        future.set_exception(error) if error else future.set_result(None)
