"""The official client, unchanged, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.server.conftest import Site

HELLO: list[openai.types.chat.ChatCompletionMessageParam] = [{"role": "user", "content": "hello"}]


@pytest.fixture
def client(site: Site) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{site.server.url}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_it_reads_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="live", messages=HELLO, max_completion_tokens=8, temperature=0)
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.model == "policy@1"
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_it_reads_a_stream(client: openai.OpenAI) -> None:
    fields = {"ignore_eos": True}
    whole = client.chat.completions.create(
        model="live", messages=HELLO, max_tokens=20, temperature=0, extra_body=fields
    )
    with client.chat.completions.create(
        model="live", messages=HELLO, max_tokens=20, temperature=0, stream=True, extra_body=fields
    ) as stream:
        chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["length"]


def test_it_reads_streams_concurrently(site: Site) -> None:
    async def read(client: openai.AsyncOpenAI) -> str:
        async with await client.chat.completions.create(
            model="live", messages=HELLO, max_tokens=20, temperature=0, stream=True
        ) as stream:
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def read_four() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{site.server.url}/v1", api_key="unused") as client:
            return await asyncio.gather(*(read(client) for _ in range(4)))

    texts = asyncio.run(read_four())
    # Greedy answers to one prompt are the same answer, whoever else is in the batch.
    assert len(set(texts)) == 1


def test_it_raises_its_own_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="live", messages=HELLO, n=3)
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "n")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"


def test_it_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    assert next(iter(client.models.list())).id == "live"
    assert client.models.retrieve("policy@1").id == "policy@1"
