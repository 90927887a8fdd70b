"""What scripted people say of the shipped policy: wrong as often as they are said to be, and the same each time."""

from __future__ import annotations

import pytest

from rlhf_core.desk import judgements
from rlhf_core.desk.demonstrations import training_prompts
from rlhf_core.desk.judgements import collect, said
from rlhf_core.desk.raters import is_good
from rlhf_core.learning.rollouts import SampledResponse
from rlhf_core.models.load import DESK_CHECKPOINT, LoadedPolicy, load_policy

SEED = 5


@pytest.fixture(scope="module")
def desk() -> LoadedPolicy:
    return load_policy(DESK_CHECKPOINT, frozen=True)


def test_thumbs_agree_with_the_true_taste_but_for_the_noise(
    desk: LoadedPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(judgements, "PAIRS", 20)
    monkeypatch.setattr(judgements, "THUMBS", 200)
    found = collect(desk, SEED)
    prompts = training_prompts(200, SEED + 101)
    good = [
        is_good(prompt, said(desk, SampledResponse(each.prompt_token_ids, each.token_ids, (), True)))
        for prompt, each in zip(prompts, found.ratings, strict=True)
    ]
    wrong = sum(fine != (each.value == "up") for fine, each in zip(good, found.ratings, strict=True))
    # 15 % of 200 is 30; four standard deviations of sqrt(200 x .15 x .85) = 5.05 are 20.
    assert 10 <= wrong <= 50
    assert len(found.pairs) == 20
    assert {each.chosen_side for each in found.pairs} == {"left", "right"}
    assert collect(desk, SEED) == found
