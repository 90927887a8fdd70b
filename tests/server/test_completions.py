"""Streams of several answers, driven token by token by the test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from rlhf_core.engine.sequence import GenerationRequest, Sequence, StepOutput
from rlhf_core.errors import AttuneError, StoreUnavailableError
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import Interaction, Sampling
from server import completions, generation
from server.answer import Answer, AnswerSet
from server.engine_thread import Ending
from server.errors import GenerationFailedError
from server.frames import CHAT, PING, TEXT, Form
from server.generation import Generation
from server.schemas import StreamOptions

PLAIN = StreamOptions()


class Scene:
    """A set of answers without an engine; the test is the engine."""

    def __init__(self, policy: LoadedPolicy, count: int, n: int) -> None:
        self.policy = policy
        self.aborted: list[tuple[str, Ending]] = []
        self.lost: AttuneError | None = None
        """What keeps records from being stored."""
        self.set = AnswerSet(tuple(self._answer(f"chatcmpl-{place}") for place in range(count)), n, self._abort)

    def _answer(self, name: str) -> Answer:
        request = GenerationRequest(name, (3, 9, 4), Sampling(max_tokens=8))
        going = Generation(request)
        opened = Interaction(interaction_id=name, created_at=7.5)
        return Answer(opened, going, asyncio.create_task(self._record(opened, going)))

    async def _record(self, opened: Interaction, going: Generation) -> Interaction:
        await going.ended.wait()
        if self.lost is not None:
            raise self.lost
        return opened

    def _abort(self, request_id: str, ending: Ending) -> None:
        self.aborted.append((request_id, ending))

    def say(self, place: int, text: str, *, finished: bool = False) -> None:
        going = self.set.answers[place].generation
        sequence = going.sequence or Sequence(going.request, 8, policy=self.policy)
        going.take(StepOutput(sequence, 9, -0.5, text, finished))

    def fail(self, place: int, error: AttuneError) -> None:
        self.set.answers[place].generation.end(None, error)

    def stream(self, form: Form = CHAT, options: StreamOptions = PLAIN) -> Any:
        return completions.stream(self.set, form, options, logprobs=False)


async def rest(stream: Any) -> list[bytes]:
    return [body async for body in stream]


def played(play: Callable[[Scene], Awaitable[None]], policy: LoadedPolicy, count: int = 2, n: int = 2) -> None:
    async def run() -> None:
        await play(Scene(policy, count, n))

    asyncio.run(run())


def test_each_choice_comes_as_it_is_said(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        said = []
        scene.say(0, "a")
        stream = scene.stream()
        said.append(await anext(stream))
        for place, text in [(1, "x"), (0, "b"), (1, "y")]:
            scene.say(place, text)
            said.append(await anext(stream))
        choices = [json.loads(body[6:])["choices"][0] for body in said]
        assert [(choice["index"], choice["delta"]["content"]) for choice in choices] == [
            (0, "a"),
            (1, "x"),
            (0, "b"),
            (1, "y"),
        ]
        scene.say(1, "", finished=True)
        scene.say(0, "", finished=True)
        *finishes, done = await rest(stream)
        assert sorted(json.loads(body[6:])["choices"][0]["index"] for body in finishes) == [0, 1]
        assert done == b"data: [DONE]\n\n"

    played(play, tiny_policy)


def test_choices_begin_in_the_order_of_their_indices(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        scene.say(0, "a")
        stream = scene.stream()
        await anext(stream)
        scene.say(2, "x")
        scene.say(2, "y")
        scene.say(0, "b")
        said = [await anext(stream)]
        scene.say(1, "m")
        said += [await anext(stream) for _ in range(2)]
        choices = [json.loads(body[6:])["choices"][0] for body in said]
        assert [(choice["index"], choice["delta"]["content"]) for choice in choices] == [(0, "b"), (1, "m"), (2, "xy")]
        await stream.aclose()

    played(play, tiny_policy, count=3, n=3)


def test_one_failure_ends_the_stream_with_an_error_and_takes_the_others_along(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        for place in range(3):
            scene.say(place, "a")
        stream = scene.stream()
        assert b'"index":0' in await anext(stream)
        error = GenerationFailedError("the policy failed")
        scene.fail(1, error)
        bodies = await rest(stream)
        assert json.loads(bodies[-1][6:])["error"]["code"] == "generation_failed"
        assert not any(b"[DONE]" in body or b'"finish_reason":"' in body for body in bodies)
        assert scene.aborted == [("chatcmpl-0", error), ("chatcmpl-2", error)]

    played(play, tiny_policy, count=3, n=3)


def test_an_answer_whose_record_is_lost_does_not_look_complete(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        scene.lost = StoreUnavailableError("the store is away")
        scene.say(0, "a")
        scene.say(0, "b", finished=True)
        bodies = await rest(scene.stream())
        assert json.loads(bodies[-1][6:])["error"]["code"] == "store_unavailable"
        assert b"[DONE]" not in b"".join(bodies)

    played(play, tiny_policy, count=1, n=1)


def test_a_failure_before_the_first_token_is_raised_and_takes_the_others_along(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        error = GenerationFailedError("the engine failed")
        scene.fail(0, error)
        with pytest.raises(GenerationFailedError):
            await scene.set.begun()
        assert scene.aborted == [("chatcmpl-1", error)]

    played(play, tiny_policy)


def test_a_failure_of_one_fails_a_whole_response(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        scene.say(0, "a")
        scene.fail(1, GenerationFailedError("the policy failed"))
        with pytest.raises(GenerationFailedError):
            await scene.set.stored()
        assert [name for name, _ in scene.aborted] == ["chatcmpl-0"]

    played(play, tiny_policy)


def test_what_nobody_foresaw_gives_the_answers_up_as_failed(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        scene.set.fail(ValueError("a secret"))
        assert [type(ending) for _, ending in scene.aborted] == [GenerationFailedError] * 2
        assert "secret" not in str(scene.aborted)

    played(play, tiny_policy)


def test_usage_counts_each_prompt_once_and_every_answer(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        for place in range(4):
            for _ in range(place):
                scene.say(place, "a")
        # Two prompts of three tokens, with two answers each: of 0 and 1, and of 2 and 3 tokens.
        assert completions.usage(scene.set) == {"prompt_tokens": 6, "completion_tokens": 6, "total_tokens": 12}

    played(play, tiny_policy, count=4, n=2)


def test_continuous_usage_counts_what_was_sent_so_far(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        options = StreamOptions(include_usage=True, continuous_usage_stats=True)
        scene.say(0, "a")
        stream = scene.stream(TEXT, options)
        counts = [json.loads((await anext(stream))[6:])["usage"]["completion_tokens"]]
        for place in (1, 0):
            scene.say(place, "b", finished=True)
            counts.append(json.loads((await anext(stream))[6:])["usage"]["completion_tokens"])
            counts.append(json.loads((await anext(stream))[6:])["usage"]["completion_tokens"])
        *_, last, done = await rest(stream)
        assert counts == [1, 2, 2, 3, 3]
        assert json.loads(last[6:])["usage"]["completion_tokens"] == 3
        assert done == b"data: [DONE]\n\n"

    played(play, tiny_policy)


def test_a_silence_is_filled_with_comments(tiny_policy: LoadedPolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(scene: Scene) -> None:
        scene.say(0, "a")
        stream = scene.stream()
        await anext(stream)
        assert await anext(stream) == PING == b": ping\n\n"
        await stream.aclose()

    monkeypatch.setattr(generation, "PING_SECONDS", 0.01)
    played(play, tiny_policy, count=1, n=1)


def test_closing_a_stream_leaves_no_reader_behind(tiny_policy: LoadedPolicy) -> None:
    async def play(scene: Scene) -> None:
        before = asyncio.all_tasks()
        scene.say(0, "a")
        stream = scene.stream()
        await anext(stream)
        assert len(asyncio.all_tasks() - before) == 2
        await stream.aclose()
        for _ in range(3):
            await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    played(play, tiny_policy)
