"""Clients that others write and many people use, unchanged, against a real server: litellm and langchain-openai.

Both send fields and headers of their own and look at what comes back more closely than OpenAI's client does.
"""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

# Before they are imported: litellm would fetch a list of prices, langsmith would report.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
os.environ["LANGSMITH_TRACING"] = "false"
os.environ["LANGCHAIN_TRACING_V2"] = "false"

from tests.server.conftest import Site
from tests.server.saying import SAID

# Of pydantic, for how litellm looks through every attribute of a chunk.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Accessing the 'model_(computed_)?fields' attribute on the instance:DeprecationWarning"
)

HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def litellm() -> Iterator[Any]:
    import litellm

    litellm.telemetry = False
    litellm.suppress_debug_info = True
    # Without one it makes its own and never closes it.
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield litellm
    asyncio.set_event_loop(None)
    loop.close()
    for client in litellm.in_memory_llm_clients_cache.cache_dict.values():
        if not inspect.iscoroutinefunction(client.close):
            client.close()


def reach(site: Site) -> dict[str, Any]:
    return {"model": "openai/live", "api_base": f"{site.server.url}/v1", "api_key": "unused", "max_retries": 0}


def test_litellm_reads_a_whole_answer_and_several(litellm: Any, saying_site: Site) -> None:
    answer = litellm.completion(messages=HELLO, max_tokens=30, n=2, **reach(saying_site))
    assert [choice.message.content for choice in answer.choices] == [SAID, SAID]
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    record = saying_site.interactions.get(answer.id)
    assert answer.usage.prompt_tokens == len(record.prompt_token_ids)
    assert answer.usage.completion_tokens == 2 * len(record.token_ids)


def test_litellm_reads_a_stream_with_its_usage(litellm: Any, saying_site: Site) -> None:
    stream = litellm.completion(
        messages=HELLO, max_tokens=30, stream=True, stream_options={"include_usage": True}, **reach(saying_site)
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == SAID
    reasons = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [reason for reason in reasons if reason] == ["stop"]
    rebuilt = litellm.stream_chunk_builder(chunks, messages=HELLO)
    record = saying_site.interactions.recent(1)[0]
    assert rebuilt.usage.completion_tokens == len(record.token_ids)


def test_litellm_reads_logprobs_and_text_completions(litellm: Any, saying_site: Site) -> None:
    answer = litellm.completion(messages=HELLO, max_tokens=30, logprobs=True, top_logprobs=2, **reach(saying_site))
    entries = answer.choices[0].logprobs.content
    assert b"".join(bytes(entry.bytes) for entry in entries).decode() == SAID
    fields = reach(saying_site) | {"model": "text-completion-openai/live"}
    text = litellm.text_completion(prompt="<|assistant|>", max_tokens=30, **fields)
    assert text.choices[0].text == SAID


def test_litellm_streams_without_blocking(litellm: Any, saying_site: Site) -> None:
    async def ask() -> str:
        stream = await litellm.acompletion(messages=HELLO, max_tokens=30, stream=True, **reach(saying_site))
        said = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        await litellm.close_litellm_async_clients()
        return said

    assert asyncio.run(ask()) == SAID


def test_litellm_knows_the_errors(litellm: Any, saying_site: Site) -> None:
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(messages=[{"role": "user", "content": "x" * 200}], **reach(saying_site))
    with pytest.raises(litellm.NotFoundError):
        litellm.completion(messages=HELLO, **reach(saying_site) | {"model": "openai/policy@99"})


def chat_model(site: Site, **fields: Any) -> Any:
    from langchain_openai import ChatOpenAI

    fields = {"max_tokens": 30, "api_key": "unused", **fields}
    return ChatOpenAI(model="live", base_url=f"{site.server.url}/v1", max_retries=0, **fields)


def test_langchain_invokes(saying_site: Site) -> None:
    answer = chat_model(saying_site, logprobs=True, top_logprobs=1).invoke("hello")
    record = saying_site.interactions.get(answer.response_metadata["id"])
    entries = answer.response_metadata["logprobs"]["content"]
    assert answer.content == SAID
    assert answer.response_metadata["finish_reason"] == "stop"
    assert answer.response_metadata["model_name"] == "policy@1"
    assert b"".join(bytes(entry["bytes"]) for entry in entries).decode() == SAID
    assert answer.usage_metadata["input_tokens"] == len(record.prompt_token_ids)
    assert answer.usage_metadata["output_tokens"] == len(record.token_ids)


def test_langchain_streams(saying_site: Site) -> None:
    whole: Any = None
    for chunk in chat_model(saying_site, stream_usage=True).stream("hello"):
        whole = chunk if whole is None else whole + chunk
    assert whole.content == SAID
    assert whole.response_metadata["finish_reason"] == "stop"
    assert whole.usage_metadata["output_tokens"] == len(saying_site.interactions.recent(1)[0].token_ids)


def test_langchain_generates_several_and_batches(saying_site: Site) -> None:
    from langchain_core.messages import HumanMessage, SystemMessage

    messages = [SystemMessage("be brief"), HumanMessage("hello")]
    several = chat_model(saying_site, n=2).generate([messages])
    assert [generation.text for generation in several.generations[0]] == [SAID, SAID]
    batched = chat_model(saying_site).batch(["one", "two"])
    assert [answer.content for answer in batched] == [SAID, SAID]


def test_langchain_streams_and_completes_without_blocking(saying_site: Site) -> None:
    from langchain_openai import OpenAI

    async def ask() -> tuple[str, str]:
        async with httpx.AsyncClient() as http:
            chat = chat_model(saying_site, http_async_client=http)
            streamed = "".join([str(chunk.content) async for chunk in chat.astream("hello")])
            url = f"{saying_site.server.url}/v1"
            text = OpenAI(
                model="live", base_url=url, api_key=SecretStr("unused"), max_tokens=30, http_async_client=http
            )
            return streamed, await text.ainvoke("<|assistant|>")

    assert asyncio.run(ask()) == (SAID, SAID)
