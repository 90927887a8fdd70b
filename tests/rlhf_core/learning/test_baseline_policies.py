"""The two things people try first: good answers in the prompt, and fine-tuning on good answers."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from rlhf_core.errors import TrainingError
from rlhf_core.learning.alternatives_settings import StepSettings
from rlhf_core.learning.answer_logprobs import answer_logprobs
from rlhf_core.learning.baseline_policies import few_shot_prompts, train_on_upvoted
from rlhf_core.learning.policy_steps import alone
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.trainable import make_trainable
from tests.rlhf_core.learning.bandit import thumb

RATINGS = [thumb((40 + at, 41, 1), "up" if at % 2 else "down", (2, 10 + at, 3)) for at in range(6)]


def test_upvoted_answers_become_likelier_and_downvoted_ones_are_not_taught(tiny_model_dir: Path) -> None:
    trainee = make_trainable(load_policy(tiny_model_dir))
    answers = [(each.prompt_token_ids, each.token_ids) for each in RATINGS]
    before = answer_logprobs(trainee.model, answers, StepSettings(), alone(trainee))
    settings = SftSettings(learning_rate=3e-3, epochs=15, row_tokens=64, rows_per_minibatch=4)
    result = train_on_upvoted(trainee, RATINGS, settings)
    gain = answer_logprobs(trainee.model, answers, StepSettings(), alone(trainee)) - before
    assert result.losses[-1] < result.losses[0]
    # Three answers of six tokens, prompt included, in each of 15 epochs.
    assert result.tokens == 15 * 3 * 6
    assert float(gain[1::2].mean()) > 5.0
    assert float(gain[1::2].mean()) > float(gain[0::2].mean())


def test_without_a_thumb_up_there_is_nothing_to_show(tiny_model_dir: Path) -> None:
    policy = load_policy(tiny_model_dir)
    with pytest.raises(TrainingError, match="of 1 thumbs none is up"):
        few_shot_prompts(policy, [thumb((1,), "down")], [(5,)], 2, 16, 0)
    with pytest.raises(TrainingError, match="of 0 thumbs none is up"):
        train_on_upvoted(make_trainable(policy), [], SftSettings())


def test_a_prompt_stands_behind_good_exchanges_only(tiny_policy: LoadedPolicy) -> None:
    [shown] = few_shot_prompts(tiny_policy, RATINGS, [(7, 8)], 3, 16, 0)
    turns = sorted(shown[at : at + 6] for at in range(0, 18, 6))
    assert turns == [(2, 11, 3, 41, 41, 1), (2, 13, 3, 43, 41, 1), (2, 15, 3, 45, 41, 1)]
    assert shown[18:] == (7, 8)


def test_only_what_leaves_room_for_the_answer_is_shown(tiny_policy: LoadedPolicy) -> None:
    # The context is 256: with room for 242 tokens 14 are left, two exchanges of 6 beside the prompt's 2.
    [shown] = few_shot_prompts(tiny_policy, RATINGS, [(7, 8)], 3, 242, 0)
    assert len(shown) == 14
    [bare] = few_shot_prompts(tiny_policy, RATINGS, [(7, 8)], 3, 250, 0)
    assert bare == (7, 8)


def test_a_begin_token_is_said_once(tiny_policy: LoadedPolicy) -> None:
    class Beginning:
        bos_token_id = 2

    policy = dataclasses.replace(tiny_policy, tokenizer=Beginning())
    [shown] = few_shot_prompts(policy, RATINGS, [(2, 7)], 1, 16, 0)
    assert len(shown) == 7
    assert (shown[0], shown[-1], shown.count(2)) == (2, 7, 1)
