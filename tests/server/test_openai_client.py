"""The official client, unchanged, against a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import openai
import pytest

from tests.server.conftest import Site
from tests.server.saying import SAID

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
        client.chat.completions.create(model="live", messages=HELLO, logit_bias={"5": 1})
    assert (refused.value.code, refused.value.param) == ("unsupported_parameter", "logit_bias")
    with pytest.raises(openai.BadRequestError) as overflow:
        client.chat.completions.create(model="live", messages=[{"role": "user", "content": "x" * 20_000}])
    assert (overflow.value.code, overflow.value.param) == ("context_length_exceeded", "messages")
    with pytest.raises(openai.APIStatusError) as large:
        client.chat.completions.create(model="live", messages=[{"role": "user", "content": "x" * 300_000}])
    assert (large.value.status_code, large.value.code) == (413, "request_too_large")
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-9", messages=HELLO)
    assert unknown.value.code == "model_not_found"


def test_it_lists_and_retrieves_models(client: openai.OpenAI) -> None:
    assert next(iter(client.models.list())).id == "live"
    assert client.models.retrieve("policy@1").id == "policy@1"


def test_it_reads_several_choices(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="live", messages=HELLO, n=3, seed=1, max_tokens=6, extra_body={"ignore_eos": True}
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 18
    # What the type does not know is there all the same.
    ids = [(choice.model_extra or {})["interaction_id"] for choice in answer.choices]
    assert ids[0] == answer.id
    assert len(set(ids)) == 3


def test_it_accumulates_a_stream_of_several_choices(client: openai.OpenAI) -> None:
    fields: dict[str, object] = {"ignore_eos": True}
    whole = client.chat.completions.create(model="live", messages=HELLO, n=2, seed=3, max_tokens=10, extra_body=fields)
    with client.chat.completions.stream(
        model="live",
        messages=HELLO,
        n=2,
        seed=3,
        max_tokens=10,
        logprobs=True,
        top_logprobs=2,
        stream_options={"include_usage": True},
        extra_body=fields,
    ) as stream:
        for _event in stream:
            pass
        final = stream.current_completion_snapshot
    assert [choice.message.content for choice in final.choices] == [choice.message.content for choice in whole.choices]
    assert [choice.finish_reason for choice in final.choices] == ["length", "length"]
    assert final.usage == whole.usage
    for choice in final.choices:
        assert choice.logprobs is not None
        assert [len(entry.top_logprobs) for entry in choice.logprobs.content or []] == [2] * 10


def test_it_reads_logprobs_with_the_bytes_of_the_text(saying_site: Site) -> None:
    with openai.OpenAI(base_url=f"{saying_site.server.url}/v1", api_key="unused", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="live", messages=HELLO, max_tokens=30, logprobs=True, top_logprobs=1
        )
    (choice,) = answer.choices
    assert choice.logprobs is not None
    entries = choice.logprobs.content or []
    assert choice.message.content == SAID
    assert b"".join(bytes(entry.bytes or []) for entry in entries).decode() == SAID
    assert all(entry.top_logprobs[0].token == entry.token for entry in entries)


def test_it_completes_texts(client: openai.OpenAI) -> None:
    fields: dict[str, object] = {"ignore_eos": True}
    whole = client.completions.create(
        model="live", prompt=["hello", "again"], n=2, seed=1, max_tokens=6, logprobs=3, extra_body=fields
    )
    assert [choice.index for choice in whole.choices] == [0, 1, 2, 3]
    logprobs = whole.choices[0].logprobs
    assert logprobs is not None
    assert [len(column or []) for column in (logprobs.tokens, logprobs.token_logprobs, logprobs.text_offset)] == [6] * 3
    assert all(len(top) >= 3 for top in logprobs.top_logprobs or [])
    said = [""] * 4
    with client.completions.create(
        model="live", prompt=["hello", "again"], n=2, seed=1, max_tokens=6, stream=True, extra_body=fields
    ) as stream:
        for chunk in stream:
            for choice in chunk.choices:
                said[choice.index] += choice.text
    assert said == [choice.text for choice in whole.choices]
    by_ids = client.completions.create(model="live", prompt=[5, 6, 7], max_tokens=2, extra_body=fields)
    assert by_ids.usage is not None
    assert (by_ids.usage.prompt_tokens, by_ids.usage.completion_tokens) == (3, 2)


def test_the_async_client_completes_and_streams_at_once(saying_site: Site) -> None:
    async def ask() -> list[str | None]:
        async with openai.AsyncOpenAI(base_url=f"{saying_site.server.url}/v1", api_key="unused") as client:

            async def streamed() -> str:
                async with await client.completions.create(
                    model="live", prompt="<|assistant|>", max_tokens=30, stream=True
                ) as stream:
                    return "".join([chunk.choices[0].text async for chunk in stream])

            async def several() -> str:
                answer = await client.chat.completions.create(model="live", messages=HELLO, n=2, max_tokens=30)
                return "".join(choice.message.content or "" for choice in answer.choices)

            async def one() -> str | None:
                answer = await client.chat.completions.create(model="live", messages=HELLO, max_tokens=30)
                return answer.choices[0].message.content

            return [*await asyncio.gather(streamed(), several(), one())]

    assert asyncio.run(ask()) == [SAID, SAID + SAID, SAID]
