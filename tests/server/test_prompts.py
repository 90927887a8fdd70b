"""Which prompts a text completion has."""

from __future__ import annotations

import pytest

from rlhf_core.errors import InvalidRequestError
from server.prompts import Given, given_prompts
from server.schemas import PromptItem


@pytest.mark.parametrize(
    ("prompt", "given"),
    [
        ("a b", ["a b"]),
        (("a", "b"), ["a", "b"]),
        ((1, 2), [(1, 2)]),
        (((1, 2), (3,)), [(1, 2), (3,)]),
    ],
)
def test_a_prompt_comes_in_four_ways(prompt: str | tuple[PromptItem, ...], given: list[Given]) -> None:
    assert given_prompts(prompt) == given


@pytest.mark.parametrize("prompt", [(), (1, "a"), ("a", (1,)), (1, (1,))])
def test_a_mixture_and_nothing_are_refused(prompt: tuple[PromptItem, ...]) -> None:
    with pytest.raises(InvalidRequestError) as refused:
        given_prompts(prompt)
    assert refused.value.param == "prompt"
