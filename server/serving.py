"""The event loop's view of the engine: admission, tokenising, every request that is on its way, and what is counted.

Knows no HTTP and no store.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import NO_TOKEN, GenerationRequest, StepOutput
from rlhf_core.engine.sequence import Sequence as EngineSequence
from rlhf_core.errors import ContextOverflowError, OverloadedError
from rlhf_core.models.load import LoadedPolicy, render_prompt
from rlhf_core.records import Message
from rlhf_core.settings import Settings
from server.engine_thread import Ending, EngineThread
from server.errors import DrainingError, GenerationFailedError
from server.generation import Generation
from server.metrics import Metrics

Result = TypeVar("Result")

AROUND_FLIP_SECONDS = 1.0
"""Gaps that end this long after a flip still count as the swap's."""
DRAIN_POLL_SECONDS = 0.05
LAST_POLLS = 10


def make_engine(policy: LoadedPolicy, settings: Settings) -> Engine:
    """An engine for Serving, which admits: a burst that it hands over may all wait there for one step."""
    return Engine(
        policy,
        max_running=settings.max_running,
        max_waiting=settings.max_running + settings.max_waiting,
        max_context=settings.max_context,
        max_prefix_tokens=settings.prefix_cache_tokens,
        seed=secrets.randbits(63),
        clock=time.perf_counter,
    )


class Serving:
    """Owns the engine in one thread. All methods but `abort` belong to the event loop's thread."""

    def __init__(self, engine: Engine, *, max_running: int, max_waiting: int, metrics: Metrics) -> None:
        self.max_running = max_running
        self._engine = engine
        self._cache_tokens = max_running * engine.max_context
        self._capacity = max_running + max_waiting
        self._metrics = metrics
        self._thread = EngineThread(engine, self)
        self._tokenising = ThreadPoolExecutor(1, "tokenise")
        self._followed: dict[str, Generation] = {}
        self._admitted = 0
        self._stall = 0.0
        self._stall_until = 0.0
        self.draining = False
        self.first_tokens: dict[int, float] = {}
        """Policy version to the Unix time of its first token here."""

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start(self._loop)

    def close(self) -> None:
        self._thread.close()
        self._tokenising.shutdown(wait=False)

    @property
    def alive(self) -> bool:
        return self._thread.alive

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

    async def with_tokenizer(self, work: Callable[[Any], Result]) -> Result:
        """Do something else with the tokenizer, in the thread that tokenises."""
        return await self._loop.run_in_executor(self._tokenising, work, self.policy.tokenizer)

    def submit(self, request: GenerationRequest) -> Generation:
        generation = Generation(request)
        self._followed[request.request_id] = generation
        self._thread.submit(generation)
        return generation

    def abort(self, request_id: str, ending: Ending = "client_gone") -> None:
        """End a request before the next step. From any thread; harmless when it has ended already."""
        self._thread.abort(request_id, ending)

    def expect_swap(self) -> None:
        """A swap is being prepared: gaps between tokens are its doing from now on."""
        self._stall, self._stall_until = 0.0, math.inf
        self._metrics.policy_swap_stall.set(0.0)

    def swap_is_over(self) -> None:
        """It was flipped to, or came to nothing."""
        self._stall_until = time.monotonic() + AROUND_FLIP_SECONDS

    async def swap(self, policy: LoadedPolicy) -> None:
        """Start new answers on `policy` from the next step on; waits while the set before it still drains."""
        flipped: asyncio.Future[None] = self._loop.create_future()
        self._thread.swap(policy, flipped)
        await flipped

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
        metrics.kv_cache_usage.set(self._thread.cached_tokens / self._cache_tokens)
        versions = [g.policy.policy_version for g in self._followed.values() if g.outputs]
        active = versions.count(self.policy.policy_version)
        metrics.inflight_requests.labels("active").set(active)
        metrics.inflight_requests.labels("draining").set(len(versions) - active)

    # What the engine's thread tells.

    def deliver(self, outputs: list[StepOutput], at: float) -> None:
        followed = self._followed
        drawn = 0
        for output in outputs:
            generation = followed.get(output.sequence.request.request_id)
            if generation is None:
                continue
            if output.token_id == NO_TOKEN:
                error = GenerationFailedError(f"the policy failed: {output.sequence.error}")
                self.end(generation.request.request_id, output.sequence, error)
                continue
            drawn += 1
            self._note_token(generation, output, at)
            generation.take(output)
            if output.finished:
                self._forget(generation, at)
        self._metrics.generation_tokens.inc(drawn)

    def _note_token(self, generation: Generation, output: StepOutput, at: float) -> None:
        if not generation.outputs:
            self._note_first(generation, output, at)
        else:
            gap = at - generation.last_token_at
            self._metrics.inter_token_latency.observe(gap)
            if gap > self._stall and at < self._stall_until:
                self._stall = gap
                self._metrics.policy_swap_stall.set(gap)
        generation.last_token_at = at

    def _note_first(self, generation: Generation, output: StepOutput, at: float) -> None:
        scheduled = generation.scheduled_at
        self._metrics.began(scheduled - generation.submitted_at, at - scheduled)
        generation.began_at = at
        generation.first_token_at = time.time()
        if (policy := output.sequence.policy) is not None:
            self.first_tokens.setdefault(policy.policy_version, generation.first_token_at)

    def end(self, request_id: str, sequence: EngineSequence | None, ending: Ending) -> None:
        generation = self._followed.get(request_id)
        if generation is not None:
            generation.end(sequence, ending)
            self._forget(generation, time.monotonic())

    def drained(self, seconds: float) -> None:
        self._metrics.policy_swap_phase.labels("drain").observe(seconds)

    def _forget(self, generation: Generation, at: float) -> None:
        del self._followed[generation.request.request_id]
        request, metrics = generation.request, self._metrics
        metrics.ended(len(request.prompt_token_ids), len(generation.outputs), at - generation.submitted_at)
        if generation.outputs:
            metrics.request_decode_time.observe(generation.last_token_at - generation.began_at)
        sequence = generation.sequence
        if generation.error is not None:
            cause = "draining" if isinstance(generation.error, DrainingError) else "error"
            metrics.request_aborted.labels(cause).inc()
        elif generation.given_up == "client_gone":
            metrics.request_aborted.labels("client_gone").inc()
        elif generation.given_up is None and sequence is not None:
            metrics.request_success.labels(sequence.finish_reason).inc()
