"""What a long prompt does to the streams that run, and what a conversation costs when it goes on."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from rlhf_core.errors import AttuneError
from server.bench.client import Heard, User, ask_in_turn
from server.bench.figures import middle_and_tail, quantile
from server.bench.models import BenchModel, prompts
from server.bench.servers import CONTEXT, Running
from server.bench.speed import PROMPT_TOKENS

STREAMS = 8
LONG_PROMPT_TOKENS = 1000
LONG_NEW_TOKENS = 8
CALM_SECONDS = 2.0
CONVERSATION_TOKENS = 600
REPLY_TOKENS = 32
LONG_SEED, CONVERSATION_SEED = 100, 200


@dataclass(frozen=True)
class LongPrompts:
    """Gaps of the running streams, in seconds: while nothing else happened, and while a long prompt entered."""

    calm: list[float]
    entering: list[float]
    firsts: list[float]
    """Time to first token of each long prompt."""


def report_long(running: Running, model: BenchModel, times: int) -> None:
    report_long_prompts(asyncio.run(long_prompts(running, model, times)), model)
    report_follow_up(asyncio.run(conversations(running, model, times)))


def report_long_prompts(heard: LongPrompts, model: BenchModel) -> None:
    calm, entering = middle_and_tail(heard.calm), middle_and_tail(heard.entering)
    tokens = _long_prompt_tokens(model)
    print(f"\na prompt of {tokens} tokens enters beside {STREAMS} streams, {len(heard.firsts)} times")
    print(f"  gap of the streams, p50 / p99 (ms): {calm[0]:.1f} / {calm[1]:.1f} before, ", end="")
    print(f"{entering[0]:.1f} / {entering[1]:.1f} while it enters")
    print(f"  p99 while it enters: {entering[1] / calm[0]:.2f}x the median before, ", end="")
    print(f"{entering[1] / entering[0]:.2f}x that meanwhile; largest {1000 * max(heard.entering):.0f} ms")
    print(f"  its first token: {1000 * statistics.median(heard.firsts):.0f} ms (median)", flush=True)


async def long_prompts(running: Running, model: BenchModel, times: int) -> LongPrompts:
    """Let long prompts enter one after another, with calm between them."""
    asked = prompts(model.tokenizer, PROMPT_TOKENS, LONG_SEED)
    long = prompts(model.tokenizer, _long_prompt_tokens(model), LONG_SEED + 1)
    # As long as the context allows: a stream that begins anew would itself be a prompt that enters. Its end token is
    # not drawn rather than ignored, because beyond it a policy mostly says what has no text.
    room = _room(model) - PROMPT_TOKENS - 8
    fields = {**running.fields, "max_tokens": room, "min_tokens": room, "ignore_eos": False}
    crowd = [User(running.url, fields) for _ in range(STREAMS)]
    streams = [asyncio.create_task(ask_in_turn(user, asked, lambda _: True)) for user in crowd]
    calm, entering, firsts = [], [], []
    newcomer = User(running.url, {**running.fields, "max_tokens": LONG_NEW_TOKENS})
    try:
        await _until_all_speak(crowd)
        for _ in range(times):
            since = asyncio.get_running_loop().time()
            await asyncio.sleep(CALM_SECONDS)
            heard = await newcomer.ask([{"role": "user", "content": next(long)}])
            firsts.append(_whole(heard).first)
            calm.append((since, heard.sent_at))
            entering.append((heard.sent_at, heard.frames[0]))
    finally:
        newcomer.leave()
        for task in streams:
            task.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
    spoken = [heard.read() for user in crowd for heard in user.heard]
    return LongPrompts(list(_gaps_within(spoken, calm)), list(_gaps_within(spoken, entering)), firsts)


def _gaps_within(spoken: list[Heard], windows: list[tuple[float, float]]) -> Iterator[float]:
    """Every gap that ended within one of the windows."""
    for heard in spoken:
        for earlier, later in zip(heard.frames, heard.frames[1:], strict=False):
            if any(start < later <= end for start, end in windows):
                yield later - earlier


async def _until_all_speak(crowd: list[User]) -> None:
    """Wait until each stream has said something beyond its head. Polled: a stream in flight does nothing but listen."""
    async with asyncio.timeout(120):
        while not all(user.heard and len(user.heard[-1].pieces) > 3 for user in crowd):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


@dataclass(frozen=True)
class Turns:
    """Time to first token of a conversation's first turn and of the one after it, in seconds; tokens."""

    first: float
    follow_up: float
    prompt_tokens: int
    cached_tokens: int | None
    """Of the follow-up's prompt, where the server says."""


def report_follow_up(turns: list[Turns]) -> None:
    first, follow_up = (quantile([getattr(turn, name) for turn in turns], 50) for name in ("first", "follow_up"))
    last = turns[-1]
    cached = "not said" if last.cached_tokens is None else str(last.cached_tokens)
    print(f"\na conversation of {CONVERSATION_TOKENS} tokens and its next turn, {len(turns)} times")
    print(f"  first token: {first:.0f} ms, of the follow-up {follow_up:.0f} ms ({follow_up / first:.2f}x); ", end="")
    print(f"its prompt {last.prompt_tokens} tokens, cached {cached}", flush=True)


async def conversations(running: Running, model: BenchModel, times: int) -> list[Turns]:
    user = User(running.url, {**running.fields, "max_tokens": REPLY_TOKENS})
    size = min(CONVERSATION_TOKENS, _room(model) * 3 // 5)
    openings = prompts(model.tokenizer, size, CONVERSATION_SEED)
    questions = prompts(model.tokenizer, 20, CONVERSATION_SEED + 1)
    turns = []
    for _ in range(times):
        talk = [{"role": "user", "content": next(openings)}]
        first = _whole(await user.ask(talk))
        talk += [{"role": "assistant", "content": first.text}, {"role": "user", "content": next(questions)}]
        second = _whole(await user.ask(talk))
        details = second.usage.prompt_tokens_details
        cached = details.cached_tokens if details else None
        turns.append(Turns(first.first, second.first, second.usage.prompt_tokens, cached))
    user.leave()
    return turns


def _whole(heard: Heard) -> Heard:
    """The answer, read. Raises AttuneError when it failed."""
    heard.read()
    if heard.error or not heard.frames:
        raise AttuneError(f"an answer failed: {heard.error or 'no text'}")
    return heard


def _room(model: BenchModel) -> int:
    return min(CONTEXT, model.max_context)


def _long_prompt_tokens(model: BenchModel) -> int:
    return min(LONG_PROMPT_TOKENS, _room(model) - 2 * LONG_NEW_TOKENS)
