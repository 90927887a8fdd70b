"""Streams byte for byte, as a socket sees them."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.server.conftest import Site, chat_body
from tests.server.saying import SAID


def raw_stream(site: Site, path: str, body: dict[str, object]) -> tuple[bytes, list[bytes]]:
    """The head of the response, and the chunks of its body as the server wrote them."""
    content = json.dumps(body).encode()
    address = urlsplit(site.server.url)
    head = f"POST {path} HTTP/1.1\r\nhost: attune\r\ncontent-length: {len(content)}\r\nconnection: close\r\n\r\n"
    with socket.create_connection((address.hostname, address.port or 80), timeout=60) as connection:
        connection.sendall(head.encode() + content)
        received = connection.makefile("rb").read()
    head_bytes, _, rest = received.partition(b"\r\n\r\n")
    chunks = []
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        chunks.append(rest[: int(size, 16)])
        rest = rest[int(size, 16) + 2 :]
    assert chunks.pop() == b"", "a chunked body ends with an empty chunk"
    return head_bytes.lower(), chunks


def test_a_chat_stream_is_exactly_these_bytes(saying_site: Site) -> None:
    body = chat_body(stream=True, max_tokens=32, stream_options={"include_usage": True})
    head, chunks = raw_stream(saying_site, "/v1/chat/completions", body)
    assert head.startswith(b"http/1.1 200 ")
    assert b"\r\ncontent-type: text/event-stream" in head
    assert b"\r\ncache-control: no-cache" in head
    first = json.loads(chunks[0].removeprefix(b"data: "))
    record = saying_site.interactions.get(first["id"])
    policy = saying_site.policies.live()
    assert policy is not None
    # How many tokens share a chunk depends on how fast this client reads, so the pieces are taken from the answer.
    pieces = [json.loads(chunk.removeprefix(b"data: "))["choices"][0]["delta"]["content"] for chunk in chunks[:-3]]
    assert "".join(pieces) == SAID
    start = (
        f'data: {{"id":"{first["id"]}","object":"chat.completion.chunk","created":{first["created"]},'
        f'"model":"policy@1","system_fingerprint":"policy-1-{policy.weights_sha256[:12]}","choices":['
    )
    open_choice = '"logprobs":null,"finish_reason":null'
    end = ',"usage":null}\n\n'
    prompt, said = len(record.prompt_token_ids), len(record.token_ids)
    total = prompt + said
    expected = [
        f'{start}{{"index":0,"delta":{{"role":"assistant","content":"{pieces[0]}"}},{open_choice},'
        f'"interaction_id":"{first["id"]}"}}]{end}',
        *(f'{start}{{"index":0,"delta":{{"content":"{piece}"}},{open_choice}}}]{end}' for piece in pieces[1:]),
        f'{start}{{"index":0,"delta":{{}},"logprobs":null,"finish_reason":"stop"}}]{end}',
        f'{start}],"usage":{{"prompt_tokens":{prompt},"completion_tokens":{said},"total_tokens":{total}}}}}\n\n',
        "data: [DONE]\n\n",
    ]
    assert b"".join(chunks) == "".join(expected).encode()


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_no_chunk_splits_a_character_and_none_holds_two_events(saying_site: Site, path: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi<|assistant|>"}
    _, chunks = raw_stream(saying_site, path, {**body, "stream": True, "max_tokens": 32})
    text = ""
    for chunk in chunks:
        event = chunk.decode()
        assert event.startswith("data: ")
        assert event.endswith("\n\n")
        assert event.count("\n") == 2
        if event != "data: [DONE]\n\n":
            choice = json.loads(event.removeprefix("data: "))["choices"][0]
            text += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    assert text == SAID
    assert "\ufffd" not in text


def test_choices_are_interleaved_and_each_begins_with_its_role(saying_site: Site) -> None:
    body = chat_body(stream=True, max_tokens=32, n=3, stream_options={"include_usage": True})
    _, chunks = raw_stream(saying_site, "/v1/chat/completions", body)
    frames = [json.loads(chunk.removeprefix(b"data: ")) for chunk in chunks[:-1]]
    assert chunks[-1] == b"data: [DONE]\n\n"
    assert frames[-1]["choices"] == []
    by_choice: dict[int, list[dict[str, Any]]] = {0: [], 1: [], 2: []}
    for frame in frames[:-1]:
        (choice,) = frame["choices"]
        by_choice[choice["index"]].append(choice)
    for choices in by_choice.values():
        deltas = [choice["delta"] for choice in choices]
        assert [("role" in delta) for delta in deltas] == [True] + [False] * (len(deltas) - 1)
        assert "".join(delta.get("content", "") for delta in deltas) == SAID
        assert [choice["finish_reason"] for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
    ids = [choices[0]["interaction_id"] for choices in by_choice.values()]
    assert len(set(ids)) == 3
    assert {frame["id"] for frame in frames} == {ids[0]}
    # They run together, so no choice is through before another has begun.
    firsts = [frame["choices"][0]["index"] for frame in frames[:6]]
    assert set(firsts) == {0, 1, 2}
