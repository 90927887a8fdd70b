"""`--reward`: any function over texts, checked at every call, and reward checkpoints of the right tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlhf_core.errors import SettingsError, TrainingError
from rlhf_core.models.load import LoadedPolicy, render_prompt
from rlhf_core.records import Message
from rlhf_core.runs.reward_function import load_score_function

MODULE = """
seen = []

def length(prompts, responses):
    seen.append((prompts, responses))
    return [float(len(response)) for response in responses]

def short(prompts, responses):
    return [1.0]

def words(prompts, responses):
    return ["good"] * len(responses)

def endless(prompts, responses):
    return [float("inf")] * len(responses)

class Judge:
    @staticmethod
    def rate(prompts, responses):
        return [0.5] * len(responses)

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def scores(policy: LoadedPolicy, name: str) -> list[float]:
    prompt = tuple(render_prompt(policy.tokenizer, [Message("user", "hello")]))
    answer = tuple(policy.tokenizer("hi there<|end|>", add_special_tokens=False)["input_ids"])
    return load_score_function(name, policy)([prompt, prompt], [answer, answer]).tolist()


@pytest.mark.usefixtures("here")
def test_a_function_gets_texts_and_its_numbers_are_the_scores(tiny_policy: LoadedPolicy) -> None:
    # "hi there" has 8 characters; the end token is not part of the text.
    assert scores(tiny_policy, "rewards_of_mine:length") == [8.0, 8.0]
    assert scores(tiny_policy, "rewards_of_mine:Judge.rate") == [0.5, 0.5]
    from importlib import import_module

    assert import_module("rewards_of_mine").seen[-1] == (
        ["<|user|>hello<|end|><|assistant|>"] * 2,
        ["hi there"] * 2,
    )


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("short", r"got 2 responses and returned scores of shape \(1,\)"),
        ("words", "returned list, not numbers"),
        ("endless", "returned 2 scores that are not finite"),
    ],
)
def test_what_is_not_one_finite_number_each_stops_the_run(name: str, said: str, tiny_policy: LoadedPolicy) -> None:
    with pytest.raises(TrainingError, match=said):
        scores(tiny_policy, f"rewards_of_mine:{name}")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere", "neither a reward checkpoint"),
        ("no_such_module:length", "cannot be imported"),
        ("rewards_of_mine:nothing", "cannot be imported"),
        ("rewards_of_mine:number", "is int and cannot be called"),
    ],
)
def test_a_name_that_is_no_reward_is_refused(name: str, said: str, tiny_policy: LoadedPolicy) -> None:
    with pytest.raises(SettingsError, match=said):
        load_score_function(name, tiny_policy)
