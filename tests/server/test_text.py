"""The text completion route on a real server."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tests.server.conftest import LONG_CONTEXT, Site, eventually, sse
from tests.server.saying import SAID


def complete(site: Site, prompt: object = "hello", **fields: object) -> httpx.Response:
    return site.http.post("/v1/completions", json={"prompt": prompt, "max_tokens": 8, **fields})


def texts(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [choice["text"] for choice in response.json()["choices"]]


def test_a_text_goes_on_without_a_template_and_is_stored_as_one_message(site: Site) -> None:
    response = complete(site, temperature=0, ignore_eos=True, user="ada", metadata={"conversation_id": "c-1"})
    body = response.json()
    (choice,) = body["choices"]
    record = site.interactions.get(choice["interaction_id"])
    assert body["object"] == "text_completion"
    assert body["id"] == choice["interaction_id"] == response.headers["x-interaction-id"]
    assert body["id"].startswith("cmpl-")
    assert choice["finish_reason"] == "length"
    assert [(message.role, message.content) for message in record.messages] == [("user", "hello")]
    assert (record.response, record.conversation_id) == (choice["text"], "c-1")
    # The chat template would have begun with <|user|>, which is 3.
    assert 3 not in record.prompt_token_ids
    assert body["usage"] == {
        "prompt_tokens": len(record.prompt_token_ids),
        "completion_tokens": 8,
        "total_tokens": len(record.prompt_token_ids) + 8,
    }


def test_token_ids_are_the_same_as_their_text(site: Site) -> None:
    fields = {"temperature": 0, "ignore_eos": True}
    first = complete(site, "hello", **fields)
    token_ids = site.interactions.get(first.json()["id"]).prompt_token_ids
    by_ids = complete(site, list(token_ids), **fields)
    assert texts(by_ids) == texts(first)
    assert site.interactions.get(by_ids.json()["id"]).messages[0].content == "hello"


def test_special_tokens_in_a_text_are_the_special_tokens(saying_site: Site) -> None:
    # That model answers to <|assistant|> alone, so it was read as one token and not as thirteen letters.
    assert texts(complete(saying_site, "anything<|assistant|>", max_tokens=30)) == [SAID]


def test_several_prompts_have_n_answers_each_in_order(site: Site) -> None:
    fields = {"temperature": 0, "ignore_eos": True}
    alone = [texts(complete(site, prompt, **fields))[0] for prompt in ("hello", "the router")]
    both = complete(site, ["hello", "the router"], n=2, **fields)
    body = both.json()
    assert texts(both) == [alone[0], alone[0], alone[1], alone[1]]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    records = [site.interactions.get(choice["interaction_id"]) for choice in body["choices"]]
    assert [record.messages[0].content for record in records] == ["hello", "hello", "the router", "the router"]
    assert body["usage"]["prompt_tokens"] == len(records[0].prompt_token_ids) + len(records[2].prompt_token_ids)
    assert body["usage"]["completion_tokens"] == 32


def test_each_prompt_of_several_is_drawn_as_if_it_came_alone(site: Site) -> None:
    fields = {"seed": 5, "ignore_eos": True}
    alone = texts(complete(site, "the router", **fields))
    assert texts(complete(site, ["hello", "the router"], **fields))[1:] == alone


def test_a_stream_says_what_the_whole_says(site: Site) -> None:
    fields: dict[str, Any] = {"temperature": 0, "ignore_eos": True, "max_tokens": 30, "prompt": ["hello", "again"]}
    whole = site.http.post("/v1/completions", json=fields).json()
    streamed = fields | {"stream": True, "stream_options": {"include_usage": True}}
    with site.http.stream("POST", "/v1/completions", json=streamed) as response:
        *chunks, done = sse(response.iter_lines())
    frames = [json.loads(chunk) for chunk in chunks]
    said = ["", ""]
    for frame in frames[:-1]:
        (choice,) = frame["choices"]
        said[choice["index"]] += choice["text"]
    assert done == "[DONE]"
    assert said == [choice["text"] for choice in whole["choices"]]
    assert {frame["object"] for frame in frames} == {"text_completion"}
    assert frames[-1]["usage"] == whole["usage"]


def test_logprobs_come_as_columns(saying_site: Site) -> None:
    fields = {"prompt": "<|assistant|>", "max_tokens": 30, "logprobs": 2}
    whole = saying_site.http.post("/v1/completions", json=fields).json()["choices"][0]["logprobs"]
    record = saying_site.interactions.recent(1)[0]
    assert whole["token_logprobs"] == list(record.logprobs)
    assert whole["tokens"][0] == "n"
    assert whole["tokens"][-1] == "<|end|>"
    # n, then the two bytes of é, which is character 1.
    assert whole["text_offset"][:3] == [0, 1, 1]
    assert whole["text_offset"][-1] == len(SAID)
    assert all(token in top for token, top in zip(whole["tokens"], whole["top_logprobs"], strict=True))
    columns: dict[str, list[Any]] = {name: [] for name in whole}
    with saying_site.http.stream("POST", "/v1/completions", json=fields | {"stream": True}) as response:
        for payload in sse(response.iter_lines()):
            some = None if payload == "[DONE]" else json.loads(payload)["choices"][0]["logprobs"]
            for name, values in (some or {}).items():
                columns[name] += values
    assert columns == whole


def test_a_stop_string_ends_each_choice(saying_site: Site) -> None:
    response = complete(saying_site, "<|assistant|>", max_tokens=30, n=2, stop=["🙂"])
    assert texts(response) == ["né 日", "né 日"]
    assert {choice["finish_reason"] for choice in response.json()["choices"]} == {"stop"}


@pytest.mark.parametrize(
    ("prompt", "fields", "param", "code"),
    [
        ("", {}, "prompt", "invalid_value"),
        ([], {}, "prompt", "invalid_value"),
        ([[]], {}, "prompt", "invalid_value"),
        (["a", 1], {}, "prompt", "invalid_value"),
        ([1, 300], {}, "prompt", "invalid_value"),
        ([[1], [-1]], {}, "prompt[1]", "invalid_value"),
        ([1, 2.5], {}, "prompt[1]", "invalid_value"),
        (None, {}, "prompt", "invalid_value"),
        (["a"] * 5, {}, "prompt", "invalid_value"),
        ("a", {"n": 5}, "n", "invalid_value"),
        (["a"] * 3, {"n": 2}, "prompt", "invalid_value"),
        ("a", {"echo": True}, "echo", "unsupported_parameter"),
        ("a", {"suffix": "b"}, "suffix", "unsupported_parameter"),
        ("a", {"best_of": 2}, "best_of", "unsupported_parameter"),
        ("x" * 20_000, {}, "prompt", "context_length_exceeded"),
        ([5] * LONG_CONTEXT, {}, "prompt", "context_length_exceeded"),
    ],
)
def test_what_cannot_be_completed_is_refused_by_name(
    site: Site, prompt: object, fields: dict[str, object], param: str, code: str
) -> None:
    response = complete(site, prompt, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"


def test_refusals_name_the_numbers(site: Site) -> None:
    unknown = complete(site, [1, 300]).json()["error"]["message"]
    long = complete(site, [5] * LONG_CONTEXT).json()["error"]["message"]
    many = complete(site, ["a"] * 5).json()["error"]["message"]
    assert "300" in unknown
    assert "299" in unknown
    # The prompt fills the context, so that not one token fits after it.
    assert f"prompt has {LONG_CONTEXT} tokens" in long
    assert f"length is {LONG_CONTEXT} tokens" in long
    assert "5, more than the 4" in many


def test_a_client_that_hangs_up_gives_all_answers_up(site: Site) -> None:
    body = {"prompt": ["a", "b"], "n": 2, "ignore_eos": True, "max_tokens": 6000, "temperature": 0, "stream": True}
    with site.http.stream("POST", "/v1/completions", json=body) as response:
        next(sse(response.iter_lines()))
        ids = [record.interaction_id for record in site.interactions.recent(4)]
    assert [site.ended(interaction_id).status for interaction_id in ids] == ["aborted"] * 4
    eventually(lambda: site.metric("num_requests_running") == 0.0)


def test_errors_have_openais_shape(site: Site) -> None:
    answers = {
        "malformed": site.http.post("/v1/completions", content=b'{"prompt": ['),
        "wrong method": site.http.get("/v1/completions"),
        "too large": site.http.post("/v1/completions", content=b" " * 300_000),
        "unknown model": complete(site, model="policy@99"),
    }
    expected = {
        "malformed": (400, "invalid_json"),
        "wrong method": (405, "method_not_allowed"),
        "too large": (413, "request_too_large"),
        "unknown model": (404, "model_not_found"),
    }
    assert {name: (got.status_code, got.json()["error"]["code"]) for name, got in answers.items()} == expected


def test_ignored_names_are_listed_and_nothing_is_kept_of_what_is_not_to_be_stored(site: Site) -> None:
    response = complete(site, "a secret", store=False, zork=1)
    record = site.interactions.get(response.headers["x-interaction-id"])
    assert response.headers["x-ignored-parameters"] == "zork"
    assert (record.stored, record.messages, record.response, record.prompt_token_ids) == (False, (), "", ())
