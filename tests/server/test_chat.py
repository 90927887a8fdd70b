"""The chat route on a real server: streams, records, refusals."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import httpx
import pytest

from tests.server.conftest import Site, chat_body, eventually, sse
from tests.server.saying import SAID

LONG = {"ignore_eos": True, "max_tokens": 6000, "temperature": 0}


@contextlib.contextmanager
def stream(site: Site, **fields: object) -> Iterator[httpx.Response]:
    with site.http.stream("POST", "/v1/chat/completions", json=chat_body(**{"stream": True, **fields})) as response:
        yield response


def test_a_whole_answer_carries_its_ids_its_version_and_its_usage(site: Site) -> None:
    response = site.chat(temperature=0, ignore_eos=True, max_tokens=5)
    body = response.json()
    policy = site.policies.live()
    assert policy is not None
    assert body["id"] == response.headers["x-interaction-id"]
    assert body["id"].startswith("chatcmpl-")
    assert response.headers["x-policy-version"] == "1"
    assert body["model"] == "policy@1"
    assert body["system_fingerprint"] == f"policy-1-{policy.weights_sha256[:12]}"
    assert body["choices"][0]["finish_reason"] == "length"
    assert body["usage"]["completion_tokens"] == 5


def test_a_stream_is_role_first_then_text_then_finish_usage_and_done(site: Site) -> None:
    fields = {"temperature": 0, "ignore_eos": True, "max_tokens": 30}
    whole = site.chat(**fields).json()
    with stream(site, **fields, stream_options={"include_usage": True}) as response:
        *chunks, done = sse(response.iter_lines())
    frames = [json.loads(chunk) for chunk in chunks]
    assert done == "[DONE]"
    assert frames[0]["choices"][0]["delta"]["role"] == "assistant"
    assert all("role" not in frame["choices"][0]["delta"] for frame in frames[1:-1])
    assert {frame["id"] for frame in frames} == {response.headers["x-interaction-id"]}
    text = "".join(frame["choices"][0]["delta"].get("content", "") for frame in frames[:-1])
    assert text == whole["choices"][0]["message"]["content"]
    assert frames[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert frames[-1]["choices"] == []
    assert frames[-1]["usage"] == whole["usage"]


def test_the_record_is_complete_before_done_and_open_before_that(site: Site) -> None:
    with stream(site, ignore_eos=True, max_tokens=300, user="ada") as response:
        interaction_id = response.headers["x-interaction-id"]
        payloads = sse(response.iter_lines())
        next(payloads)
        opened = site.interactions.get(interaction_id)
        last = ""
        for payload in payloads:
            if payload == "[DONE]":
                break
            last = payload
        record = site.interactions.get(interaction_id)
    assert opened.messages[0].content == "hello"
    assert json.loads(last)["choices"][0]["finish_reason"] == "length"
    assert (record.status, record.finish_reason, record.policy_version) == ("done", "length", 1)
    assert len(record.token_ids) == len(record.logprobs) == 300
    assert all(logprob <= 0 for logprob in record.logprobs)
    # <|user|> and <|assistant|> around the text and <|end|>: the template's own ids, not a second tokenisation.
    assert record.prompt_token_ids[0] == 3
    assert record.prompt_token_ids[-1] == 4
    assert record.rater != "ada"
    assert len(record.rater) == 32


def test_logprobs_name_each_token_that_was_drawn(site: Site) -> None:
    response = site.chat(logprobs=True, temperature=0, ignore_eos=True, max_tokens=6)
    content = response.json()["choices"][0]["logprobs"]["content"]
    record = site.interactions.get(response.headers["x-interaction-id"])
    assert [entry["logprob"] for entry in content] == list(record.logprobs)


def test_streamed_logprobs_cover_every_token(site: Site) -> None:
    with stream(site, logprobs=True, ignore_eos=True, max_tokens=40) as response:
        *chunks, _done = sse(response.iter_lines())
    entries = [(json.loads(chunk)["choices"][0]["logprobs"] or {"content": []})["content"] for chunk in chunks]
    assert sum(len(some) for some in entries) == 40


def test_usage_can_come_with_every_chunk(site: Site) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    with stream(site, ignore_eos=True, max_tokens=5, stream_options=options) as response:
        frames = [json.loads(payload) for payload in sse(response.iter_lines()) if payload != "[DONE]"]
    counts = [frame["usage"]["completion_tokens"] for frame in frames if frame["choices"] and "usage" in frame]
    assert counts == sorted(counts)
    assert counts[-1] <= 5


def test_a_seed_repeats_an_answer_and_a_stop_string_ends_it(site: Site) -> None:
    first, second = (site.chat(seed=7, max_tokens=40, ignore_eos=True).json() for _ in range(2))
    text = first["choices"][0]["message"]["content"]
    assert second["choices"][0]["message"]["content"] == text
    ascii_character = next(character for character in text[1:] if character.isascii() and character.isprintable())
    stopped = site.chat(seed=7, max_tokens=40, ignore_eos=True, stop=ascii_character).json()["choices"][0]
    assert stopped["finish_reason"] == "stop"
    assert stopped["message"]["content"] == text[: text.index(ascii_character)]


def test_names_nobody_defined_are_ignored_and_listed(site: Site) -> None:
    response = site.chat(zork=1, **{"x\nevil: 1": 2})
    assert response.status_code == 200
    assert response.headers["x-ignored-parameters"] == "x?evil??1, zork"
    assert "evil" not in response.headers


def test_a_request_id_is_echoed(site: Site) -> None:
    response = site.http.post("/v1/chat/completions", json=chat_body(), headers={"x-request-id": "req-7"})
    assert response.headers["x-request-id"] == "req-7"


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": " "}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "invalid_value"),
        ({"messages": [{"role": "wizard", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "assistant", "content": "hi"}]}, "messages[0].role", "invalid_value"),
        ({"messages": [{"role": "user"}, 3]}, "messages[1]", "invalid_value"),
        ({"messages": "hi"}, "messages", "invalid_value"),
        ({"messages": [{"role": "user", "content": "x" * 20000}]}, "messages", "context_length_exceeded"),
        ({"temperature": 3}, "temperature", "invalid_value"),
        ({"top_p": 0}, "top_p", "invalid_value"),
        ({"max_tokens": 0}, "max_tokens", "invalid_value"),
        ({"min_tokens": 9}, "min_tokens", "invalid_value"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop", "invalid_value"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
        ({"tools": [{"type": "function"}]}, "tools", "unsupported_parameter"),
        ({"response_format": {"type": "json_object"}}, "response_format", "unsupported_parameter"),
        ({"logit_bias": {"1": 5}}, "logit_bias", "unsupported_parameter"),
        ({"n": 5}, "n", "invalid_value"),
        ({"n": 9}, "n", "invalid_value"),
        ({"top_logprobs": 3}, "top_logprobs", "invalid_value"),
        ({"repetition_penalty": 1.1}, "repetition_penalty", "unsupported_parameter"),
        ({"audio": {"voice": "alloy"}}, "audio", "unsupported_parameter"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "unsupported_parameter",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    site: Site, fields: dict[str, object], param: str, code: str
) -> None:
    response = site.chat(**fields)
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, param, code)
    assert error["type"] == "invalid_request_error"


def test_values_that_ask_for_nothing_pass(site: Site) -> None:
    fields = {"n": 1, "tools": [], "response_format": {"type": "text"}, "frequency_penalty": 0, "logit_bias": None}
    assert site.chat(**fields).status_code == 200


def test_text_parts_and_the_developer_role_are_read(site: Site) -> None:
    parts = [{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]
    messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": parts}]
    record = site.interactions.get(site.chat(messages=messages).headers["x-interaction-id"])
    assert [(message.role, message.content) for message in record.messages] == [
        ("system", "be brief"),
        ("user", "one two"),
    ]


def test_n_answers_are_n_interactions_of_one_policy_that_can_each_be_rated(site: Site) -> None:
    fields = {"seed": 7, "ignore_eos": True, "max_tokens": 20}
    alone = site.chat(**fields).json()
    response = site.chat(n=3, **fields)
    body = response.json()
    said = [choice["message"]["content"] for choice in body["choices"]]
    ids = [choice["interaction_id"] for choice in body["choices"]]
    records = [site.interactions.get(interaction_id) for interaction_id in ids]
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2]
    assert body["id"] == ids[0] == response.headers["x-interaction-id"]
    assert said[0] == alone["choices"][0]["message"]["content"]
    assert len(set(said)) == 3
    assert [record.response for record in records] == said
    assert len({record.sampling.seed for record in records}) == 3
    assert {record.policy_version for record in records} == {1}
    assert body["usage"] == {
        "prompt_tokens": alone["usage"]["prompt_tokens"],
        "completion_tokens": 60,
        "total_tokens": alone["usage"]["prompt_tokens"] + 60,
    }
    for interaction_id in ids:
        assert site.http.put(f"/v1/interactions/{interaction_id}/rating", json={"value": "up"}).status_code in (
            200,
            201,
        )


def test_more_answers_than_there_are_slots_are_refused_with_the_number(narrow_site: Site) -> None:
    error = narrow_site.chat(n=2).json()["error"]
    assert error["param"] == "n"
    assert "n is 2, more than the 1 " in error["message"]


def test_a_client_that_hangs_up_gives_all_its_choices_up(site: Site) -> None:
    with stream(site, n=3, **LONG) as response:
        next(sse(response.iter_lines()))
        ids = [record.interaction_id for record in site.interactions.recent(3)]
    assert [site.ended(interaction_id).status for interaction_id in ids] == ["aborted"] * 3


def test_min_p_of_one_leaves_only_the_most_probable_token(site: Site) -> None:
    fields = {"ignore_eos": True, "max_tokens": 20}
    greedy = site.chat(temperature=0, **fields).json()["choices"][0]["message"]["content"]
    assert site.chat(min_p=1, **fields).json()["choices"][0]["message"]["content"] == greedy


def test_penalties_keep_an_answer_from_repeating_itself(site: Site) -> None:
    fields = {"temperature": 0, "ignore_eos": True, "max_tokens": 60}
    plain, penalised = (
        site.interactions.get(site.chat(**fields, **more).json()["id"])
        for more in ({}, {"frequency_penalty": 2, "presence_penalty": 2})
    )
    assert penalised.token_ids[0] == plain.token_ids[0]
    assert len(set(penalised.token_ids)) > len(set(plain.token_ids))
    assert (penalised.sampling.frequency_penalty, penalised.sampling.presence_penalty) == (2, 2)


def test_top_logprobs_begin_with_the_greedy_token(site: Site) -> None:
    response = site.chat(logprobs=True, top_logprobs=5, temperature=0, ignore_eos=True, max_tokens=6)
    for entry in response.json()["choices"][0]["logprobs"]["content"]:
        first, *others = entry["top_logprobs"]
        assert (first["token"], first["bytes"]) == (entry["token"], entry["bytes"])
        assert first["logprob"] == pytest.approx(entry["logprob"], abs=1e-5)
        assert len(others) == 4
        assert [first["logprob"], *(other["logprob"] for other in others)] == sorted(
            (other["logprob"] for other in entry["top_logprobs"]), reverse=True
        )


def test_the_bytes_of_all_tokens_are_the_content(saying_site: Site) -> None:
    choice = saying_site.chat(logprobs=True, max_tokens=30).json()["choices"][0]
    entries = choice["logprobs"]["content"]
    assert choice["message"]["content"] == SAID
    assert choice["finish_reason"] == "stop"
    assert bytes(byte for entry in entries for byte in entry["bytes"]).decode() == SAID
    assert (entries[-1]["token"], entries[-1]["bytes"]) == ("<|end|>", [])
    with stream(saying_site, logprobs=True, max_tokens=30) as response:
        *chunks, _done = sse(response.iter_lines())
    streamed = [(json.loads(chunk)["choices"][0]["logprobs"] or {"content": []})["content"] for chunk in chunks]
    assert [entry for some in streamed for entry in some] == entries


def test_a_prompt_that_leaves_no_room_is_refused_and_an_answer_that_does_is_cut(saying_site: Site) -> None:
    # That server has a context of 64 tokens.
    refused = saying_site.chat("x" * 80).json()["error"]
    prompt_tokens = 80 + 3
    assert (refused["code"], refused["param"]) == ("context_length_exceeded", "messages")
    assert f"{prompt_tokens} tokens" in refused["message"]
    assert "is 64 tokens" in refused["message"]
    cut = saying_site.chat("x" * 54, max_tokens=500).json()
    assert cut["usage"] == {"prompt_tokens": 57, "completion_tokens": 7, "total_tokens": 64}
    assert cut["choices"][0]["finish_reason"] == "length"


def test_a_body_may_be_just_so_large(site: Site) -> None:
    body = json.dumps(chat_body()).encode()
    fitting = body + b" " * (256 * 1024 - len(body))

    def in_chunks() -> Iterator[bytes]:
        yield fitting
        yield b" "

    statuses = [
        site.http.post("/v1/chat/completions", content=content).status_code for content in (fitting, in_chunks())
    ]
    announced = site.http.post("/v1/chat/completions", content=fitting + b" ")
    assert statuses == [200, 413]
    assert announced.status_code == 413
    assert announced.json()["error"]["type"] == "invalid_request_error"


def test_store_false_keeps_no_content(site: Site) -> None:
    response = site.chat("a secret", store=False, metadata={"topic": "secret"})
    record = site.interactions.get(response.headers["x-interaction-id"])
    assert response.json()["choices"][0]["message"]["content"] != ""
    assert (record.status, record.stored, record.policy_version) == ("done", False, 1)
    assert (record.messages, record.response, record.token_ids, record.prompt_token_ids) == ((), "", (), ())
    assert b"secret" not in json.dumps(record.metadata).encode()
    rated = site.http.put(f"/v1/interactions/{record.interaction_id}/rating", json={"value": "up"})
    assert rated.json()["counted"]["training"] is False


def test_models_are_named_by_alias_or_version_and_others_are_unknown(site: Site) -> None:
    listed = [model["id"] for model in site.http.get("/v1/models").json()["data"]]
    assert listed == ["live", "policy@1"]
    assert site.chat(model="policy@1").status_code == 200
    for name in ("gpt-9", "policy@99"):
        response = site.chat(model=name)
        error = response.json()["error"]
        assert (response.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")


def test_errors_of_the_openai_paths_have_openais_shape(site: Site) -> None:
    answers = {
        "malformed": site.http.post("/v1/chat/completions", content=b'{"messages": ['),
        "lone surrogate": site.http.post("/v1/chat/completions", content=b'{"model": "\\ud800"}'),
        "not an object": site.http.post("/v1/chat/completions", content=b"[]"),
        "wrong method": site.http.get("/v1/chat/completions"),
        "unknown path": site.http.get("/v1/chat/nothing"),
        "too large": site.http.post("/v1/chat/completions", content=b" " * 300_000),
    }
    expected = {
        "malformed": (400, "invalid_json"),
        "lone surrogate": (400, "invalid_json"),
        "not an object": (400, "invalid_json"),
        "wrong method": (405, "method_not_allowed"),
        "unknown path": (404, "unknown_path"),
        "too large": (413, "request_too_large"),
    }
    assert {name: (got.status_code, got.json()["error"]["code"]) for name, got in answers.items()} == expected


def test_a_client_that_hangs_up_frees_its_slot_at_once(narrow_site: Site) -> None:
    gone = 'request_aborted_total{cause="client_gone"}'
    before = narrow_site.metric(gone)
    with stream(narrow_site, **LONG) as response:
        interaction_id = response.headers["x-interaction-id"]
        next(sse(response.iter_lines()))
    record = narrow_site.ended(interaction_id)
    assert record.status == "aborted"
    assert record.finish_reason is None
    assert 0 < len(record.token_ids) < 6000
    assert narrow_site.metric(gone) == before + 1
    assert narrow_site.metric("num_requests_running") == 0.0
    assert narrow_site.chat().status_code == 200


def test_hanging_up_counts_before_the_first_token_and_without_a_stream(narrow_site: Site) -> None:
    with stream(narrow_site, **LONG) as response:
        running = response.headers["x-interaction-id"]
        for streamed in (True, False):
            body = chat_body(**LONG, stream=streamed)
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(f"{narrow_site.server.url}/v1/chat/completions", json=body, timeout=0.3)
            waiting = narrow_site.interactions.recent(1)[0].interaction_id
            record = narrow_site.ended(waiting)
            assert (record.status, record.token_ids) == ("aborted", ())
        assert narrow_site.interactions.get(running).status == "streaming"
        assert narrow_site.metric("num_requests_waiting") == 0.0
    assert narrow_site.ended(running).status == "aborted"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{narrow_site.server.url}/v1/chat/completions", json=chat_body(**LONG), timeout=0.3)
    record = narrow_site.ended(narrow_site.interactions.recent(1)[0].interaction_id)
    assert record.status == "aborted"
    assert 0 < len(record.token_ids) < 6000


def test_a_full_queue_answers_429_and_says_when_to_come_back(narrow_site: Site) -> None:
    rejections = 'admission_rejections_total{reason="queue_full"}'
    before = narrow_site.metric(rejections)
    with stream(narrow_site, **LONG):
        body = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 8}
        comparison = narrow_site.http.post("/v1/comparisons", json=body)
        assert comparison.status_code == 429
        assert comparison.headers["retry-after"] == "1"
        assert comparison.headers["content-type"] == "application/problem+json"
    assert narrow_site.metric(rejections) == before + 1
    eventually(lambda: narrow_site.metric("num_requests_running") == 0.0)


def test_without_the_store_nothing_is_answered_and_then_it_is_again(narrow_site: Site) -> None:
    narrow_site.store.process.terminate()
    narrow_site.store.process.wait(10)
    response = narrow_site.chat()
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "store_unavailable"
    assert narrow_site.http.get("/health/ready").status_code == 503
    assert narrow_site.http.get("/health/live").status_code == 200
    narrow_site.store.restart()
    eventually(lambda: narrow_site.http.get("/health/ready").status_code == 200)
    assert narrow_site.chat().status_code == 200


def test_a_follow_up_turn_says_how_much_of_it_was_not_read_again(site: Site) -> None:
    asked = [{"role": "user", "content": "my order waits and the router is slow again, what now"}]
    first = site.http.post(
        "/v1/chat/completions", json={"messages": asked, "max_tokens": 30, "ignore_eos": True}
    ).json()
    said = first["choices"][0]["message"]
    follow_up = [*asked, {"role": "assistant", "content": said["content"]}, {"role": "user", "content": "and now"}]
    usage = site.http.post("/v1/chat/completions", json={"messages": follow_up, "max_tokens": 2}).json()["usage"]
    # Whole blocks of 16 tokens, at least of the prompt, which is the same in both.
    cached = usage["prompt_tokens_details"]["cached_tokens"]
    assert cached % 16 == 0
    assert first["usage"]["prompt_tokens"] - 16 < cached < usage["prompt_tokens"]
