"""The engine's thread, with an engine that says what it is told."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, cast

import pytest

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest, Sequence, StepOutput
from rlhf_core.errors import ConflictError, OverloadedError
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import Sampling
from server.errors import DrainingError, GenerationFailedError
from server.generation import GivenUp
from server.metrics import Metrics
from server.serving import Serving


def policy(version: int) -> LoadedPolicy:
    return LoadedPolicy(
        model=cast(Any, None),
        tokenizer=cast(Any, None),
        policy_version=version,
        checkpoint_id=f"policy-{version}",
        weights_sha256="",
        max_context=64,
        end_token_ids=frozenset({1}),
    )


class ScriptedEngine:
    """Runs one sequence at a time, one token a step; a prompt that starts with 13 makes its step fail."""

    def __init__(self) -> None:
        self.active = policy(1)
        self.draining: LoadedPolicy | None = None
        self.sequences: list[Sequence] = []
        self.max_context = 64
        self.steps = 0
        self._hold_at = 10**12
        self._between_steps = threading.Event()
        self._open = threading.Event()
        self._open.set()

    def hold_at(self, step: int) -> None:
        """Stand still after that many steps, until told to go on."""
        self._hold_at = step
        self._open.clear()

    def hold(self) -> None:
        """Stand still, and return once it does."""
        self._between_steps.clear()
        self.hold_at(0)
        assert self._between_steps.wait(10)

    def go_on(self) -> None:
        self._hold_at = 10**12
        self._open.set()

    @property
    def has_work(self) -> bool:
        if self.steps >= self._hold_at:
            self._between_steps.set()
            assert self._open.wait(10)
        return bool(self.sequences)

    @property
    def running(self) -> int:
        return min(1, len(self.sequences))

    @property
    def waiting(self) -> int:
        return len(self.sequences) - self.running

    @property
    def cached_tokens(self) -> int:
        return sum(len(sequence.token_ids) for sequence in self.sequences)

    def submit(self, request: GenerationRequest) -> Sequence:
        sequence = Sequence(request, request.sampling.max_tokens)
        self.sequences.append(sequence)
        return sequence

    def abort(self, request_id: str) -> bool:
        kept = [sequence for sequence in self.sequences if sequence.request.request_id != request_id]
        aborted, self.sequences = len(kept) < len(self.sequences), kept
        return aborted

    def step(self) -> list[StepOutput]:
        self.steps += 1
        sequence = self.sequences[0]
        sequence.status = "running"
        if sequence.request.prompt_token_ids[0] == 13:
            raise RuntimeError("the step failed")
        sequence.policy = sequence.policy or self.active
        sequence.token_ids.append(7)
        finished = len(sequence.token_ids) == sequence.max_tokens
        if finished:
            sequence.finish_reason = "length"
            self.sequences.remove(sequence)
        return [StepOutput(sequence, 7, -1.0, "x", finished)]

    def swap(self, new: LoadedPolicy) -> None:
        if self.draining is not None:
            raise ConflictError("an older set still drains")
        self.active = new


def request(name: str, max_tokens: int = 3, first_token: int = 5) -> GenerationRequest:
    return GenerationRequest(name, (first_token,), Sampling(max_tokens=max_tokens))


@pytest.fixture
def engine() -> Iterator[ScriptedEngine]:
    return ScriptedEngine()


def run(
    engine: ScriptedEngine,
    scenario: Callable[[Serving], Awaitable[None]],
    places: int = 8,
    metrics: Metrics | None = None,
) -> None:
    """Play a scenario on a running Serving, bounded in time."""

    async def play() -> None:
        serving = Serving(cast(Engine, engine), max_running=1, max_waiting=places - 1, metrics=metrics or Metrics())
        serving.start()
        try:
            async with asyncio.timeout(20):
                await scenario(serving)
        finally:
            serving.close()
        assert not serving.alive

    asyncio.run(play())


def test_any_number_of_readers_get_every_token(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        generation = serving.submit(request("a", 5))
        early = [output.text async for batch in generation.batches() for output in batch]
        late = [output.text async for batch in generation.batches() for output in batch]
        assert early == late == ["x"] * 5
        assert serving.inflight == 0

    run(engine, scenario)


def test_a_failed_step_ends_what_it_computed_and_the_thread_lives_on(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        bad, good = serving.submit(request("bad", first_token=13)), serving.submit(request("good"))
        await bad.ended.wait()
        await good.ended.wait()
        assert isinstance(bad.error, GenerationFailedError)
        assert good.error is None
        assert len(good.outputs) == 3

    run(engine, scenario)


def test_an_idle_engine_is_not_stepped(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        await serving.submit(request("a")).ended.wait()
        await asyncio.sleep(0.05)
        assert engine.steps == 3

    run(engine, scenario)


def test_abort_ends_a_request_wherever_it_is_and_is_harmless_afterwards(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        running, waiting = serving.submit(request("running", 10**9)), serving.submit(request("waiting"))
        await running.first_token()
        for name in ("waiting", "running", "running", "unknown"):
            serving.abort(name)
        await asyncio.gather(running.ended.wait(), waiting.ended.wait())
        assert (running.aborted, waiting.aborted, waiting.outputs) == (True, True, [])
        assert engine.sequences == []

    run(engine, scenario)


def test_a_request_that_is_given_up_gets_no_token_after_the_step_that_runs(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        generation = serving.submit(request("a", 10**9))
        await generation.first_token()
        engine.hold()
        steps = engine.steps
        serving.abort("a")
        engine.go_on()
        await generation.ended.wait()
        assert engine.steps == steps
        assert len(generation.outputs) == steps

    run(engine, scenario)


def test_why_a_request_was_given_up_is_counted_once(engine: ScriptedEngine) -> None:
    metrics = Metrics()

    async def scenario(serving: Serving) -> None:
        for name, cause in (("a", "client_gone"), ("b", "stalled")):
            generation = serving.submit(request(name, 10**9))
            await generation.first_token()
            serving.abort(name, cast(GivenUp, cause))
            await generation.ended.wait()
            assert generation.given_up == cause

    run(engine, scenario, metrics=metrics)
    # The connection's own protocol counts the stall, whether or not the answer was complete by then.
    counted = [
        metrics.registry.get_sample_value("request_aborted_total", {"cause": c}) for c in ("client_gone", "stalled")
    ]
    assert counted == [1.0, 0.0]


def test_an_answer_that_ended_keeps_its_policys_name_but_not_its_weights(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        engine.active = dataclasses.replace(policy(3), model=cast(Any, "weights"))
        generation = serving.submit(request("a"))
        await generation.first_token()
        await generation.ended.wait()
        assert (generation.policy.policy_version, generation.policy.model) == (3, None)
        assert engine.active.model == "weights"

    run(engine, scenario)


def test_the_share_of_the_cache_is_of_tokens_and_falls_to_nothing(engine: ScriptedEngine) -> None:
    metrics = Metrics()

    async def scenario(serving: Serving) -> None:
        engine.hold_at(16)
        generation = serving.submit(request("a", 10**9))
        while len(generation.outputs) < 16:  # noqa: ASYNC110 - the engine tells no event
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.05)
        serving.scrape()
        # 16 tokens of one slot's 64.
        assert metrics.registry.get_sample_value("kv_cache_usage_perc") == 0.25
        serving.abort("a")
        engine.go_on()
        await generation.ended.wait()
        while metrics.registry.get_sample_value("kv_cache_usage_perc") != 0.0:
            await asyncio.sleep(0.01)
            serving.scrape()

    run(engine, scenario, metrics=metrics)


def test_admission_counts_places_that_are_only_held(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        with serving.admission(2):
            with pytest.raises(OverloadedError):
                with serving.admission():
                    pass
        with serving.admission(2):
            pass

    run(engine, scenario, places=2)


def test_a_swap_waits_while_an_older_policy_drains(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        engine.draining = policy(0)
        running = serving.submit(request("a", 10**9))
        await running.first_token()
        swapping = asyncio.create_task(serving.swap(policy(2)))
        await asyncio.sleep(0.05)
        assert not swapping.done()
        engine.draining = None
        await swapping
        assert serving.policy.policy_version == 2
        assert running.policy.policy_version == 1
        serving.abort("a")
        await running.ended.wait()

    run(engine, scenario)


def test_draining_refuses_new_work_and_ends_old_work_in_words(engine: ScriptedEngine) -> None:
    async def scenario(serving: Serving) -> None:
        endless = serving.submit(request("a", 10**9))
        await endless.first_token()
        draining = asyncio.create_task(serving.drain(0.2))
        await asyncio.sleep(0)
        with pytest.raises(DrainingError):
            with serving.admission():
                pass
        await draining
        assert isinstance(endless.error, DrainingError)

    run(engine, scenario)
