"""Bodies as others send them."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from rlhf_core.errors import InvalidRequestError
from server.schemas import ChatRequest, TextRequest, choice_seed, parse_chat, parse_text


def chat(**fields: object) -> tuple[ChatRequest, tuple[str, ...]]:
    return parse_chat(json.dumps({"messages": [{"role": "user", "content": "hi"}], **fields}).encode())


def text(**fields: object) -> tuple[TextRequest, tuple[str, ...]]:
    return parse_text(json.dumps({"prompt": "hi", **fields}).encode())


def test_every_sampling_field_is_taken_over() -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "presence_penalty": -2,
        "frequency_penalty": 1.5,
        "seed": 3,
        "stop": ["a"],
    }
    for request, _ in (chat(**fields, max_tokens=5), text(**fields, max_completion_tokens=5)):
        sampling = request.sampling()
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.9, 7, 0.1)
        assert (sampling.presence_penalty, sampling.frequency_penalty) == (-2, 1.5)
        assert (sampling.max_tokens, sampling.seed, sampling.stop) == (5, 3, ("a",))


def test_null_and_absence_mean_the_default() -> None:
    names = (*ChatRequest.__struct_fields__, "tools", "logit_bias")
    nulls, ignored = chat(**{name: None for name in names if name != "messages"})
    assert nulls == chat()[0]
    assert ignored == ()
    assert (nulls.sampling().max_tokens, text()[0].sampling().max_tokens) == (256, 16)


def test_the_first_choice_has_the_seed_itself_and_the_others_their_own() -> None:
    request, _ = chat(seed=7, n=3)
    seeds = [request.sampling(choice).seed for choice in range(3)]
    assert seeds[0] == 7
    # The first eight bytes of sha256("7:1"), big-endian, without the lowest bit.
    assert seeds[1] == int(hashlib.sha256(b"7:1").hexdigest()[:16], 16) // 2
    assert len({choice_seed(seed, choice) for seed in (0, 1, 2**63 - 1) for choice in range(8)}) == 24
    assert all(0 <= choice_seed(0, choice) < 2**63 for choice in range(8))
    assert chat(n=2)[0].sampling(1).seed is None


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"n": True}, "n"),
        ({"min_p": 1.1}, "min_p"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"seed": -1}, "seed"),
        ({"stop": ""}, "stop"),
        ({"min_tokens": 20, "max_tokens": 19}, "min_tokens"),
        ({"stream_options": {}}, "stream_options"),
    ],
)
def test_values_out_of_bounds_are_refused_by_name_on_both_routes(fields: dict[str, object], param: str) -> None:
    for parse in (chat, text):
        with pytest.raises(InvalidRequestError) as refused:
            parse(**fields)
        assert refused.value.param == param


def test_alternatives_are_asked_for_in_each_routes_own_way() -> None:
    assert chat(logprobs=True, top_logprobs=20)[0].top_logprobs == 20
    assert text(logprobs=20)[0].logprobs == 20
    refusals: list[tuple[Any, dict[str, Any]]] = [
        (chat, {"top_logprobs": 3}),
        (chat, {"logprobs": True, "top_logprobs": 21}),
        (text, {"top_logprobs": 3}),
    ]
    for parse, fields in refusals:
        with pytest.raises(InvalidRequestError) as refused:
            parse(**fields)
        assert refused.value.param == "top_logprobs"
    refusals = [(chat, {"logprobs": 2}), (text, {"logprobs": True})]
    for parse, fields in refusals:
        with pytest.raises(InvalidRequestError) as refused:
            parse(**fields)
        assert refused.value.param == "logprobs"


@pytest.mark.parametrize(("name", "value"), [("echo", True), ("suffix", "x"), ("best_of", 2), ("logit_bias", {"1": 2})])
def test_what_a_text_completion_cannot_do_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        text(**{name: value})
    assert (refused.value.param, refused.value.code) == (name, "unsupported_parameter")


def test_names_nobody_defined_are_named() -> None:
    assert chat(zork=1, abc=2, parallel_tool_calls=True)[1] == ("abc", "zork")
    assert text(zork=1, echo=False, best_of=1, suffix=None)[1] == ("zork",)
