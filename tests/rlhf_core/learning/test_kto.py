"""KTO: what a bandit with known tastes ends at, how prompts and answers are mismatched, and the loop's invariants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch

from rlhf_core.errors import TrainingError
from rlhf_core.learning.alternatives_settings import KTOSettings
from rlhf_core.learning.answer_logprobs import Answer
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.kto import mismatch, train_kto
from rlhf_core.learning.training_state import TrainingState
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.trainable import make_trainable
from rlhf_core.records import RatedResponse
from tests.rlhf_core.learning.bandit import ARMS, arm_probabilities, bandit_policy, thumb

THUMBS = [thumb(range(20 + at, 23 + 2 * at), "up" if at % 2 else "down", range(5 + at, 8 + 3 * at)) for at in range(9)]
SMALL = KTOSettings(epochs=2, minibatch_size=4, learning_rate=1e-3, microbatch_tokens=64)


def test_the_bandit_ends_with_the_best_arm_on_top(tiny_policy: LoadedPolicy) -> None:
    # Every arm gets thumbs up with probability sigma(its reward): .731, .622, .5, .378.
    thumbs = [thumb([arm], value) for arm in range(4) for value in ("up", "down")]
    approval = torch.sigmoid(ARMS).tolist()
    weights = [share for up in approval for share in (up, 1.0 - up)]
    trainee = make_trainable(bandit_policy(tiny_policy))
    settings = KTOSettings(epochs=100, minibatch_size=8, learning_rate=1e-2, kl_coef=0.5)
    history = train_kto(trainee, thumbs, settings, 0, weights=weights)
    arms = arm_probabilities(trainee.policy)
    assert arms.argsort(descending=True).tolist() == [0, 1, 2, 3]
    assert float(arms[0]) > 0.4
    assert history[-1]["policy/loss"] < history[0]["policy/loss"]


def test_turning_every_thumb_around_turns_the_arms_around(tiny_policy: LoadedPolicy) -> None:
    thumbs = [thumb([arm], value) for arm in range(4) for value in ("down", "up")]
    approval = torch.sigmoid(ARMS).tolist()
    trainee = make_trainable(bandit_policy(tiny_policy))
    settings = KTOSettings(epochs=100, minibatch_size=8, learning_rate=1e-2, kl_coef=0.5)
    train_kto(trainee, thumbs, settings, 0, weights=[share for up in approval for share in (up, 1.0 - up)])
    assert arm_probabilities(trainee.policy).argmax() == 3


Mismatch = Callable[[Sequence[Answer], int], list[int]]


def keeps_no_answer_with_its_prompt(mismatched: Mismatch) -> bool:
    answers = [((prompt,), (at,)) for at, prompt in enumerate((1, 2, 1, 3, 3, 1, 4))]
    others = mismatched(answers, 0)
    return sorted(others) == list(range(7)) and all(
        answers[at][0] != answers[other][0] for at, other in enumerate(others)
    )


def test_every_answer_is_read_once_behind_another_prompt() -> None:
    assert keeps_no_answer_with_its_prompt(mismatch)
    # The mistakes: matched pairs, and the neighbour in the batch, who may have the same prompt.
    assert not keeps_no_answer_with_its_prompt(lambda answers, seed: list(range(len(answers))))
    assert not keeps_no_answer_with_its_prompt(lambda answers, seed: [(at + 1) % 7 for at in range(7)])


def test_answers_to_one_prompt_alone_are_at_least_exchanged() -> None:
    others = mismatch([((1,), (at,)) for at in range(3)], 0)
    assert sorted(others) == [0, 1, 2]
    assert all(at != other for at, other in enumerate(others))


def test_the_reference_point_follows_answers_to_other_prompts(tiny_model_dir: Path) -> None:
    # 0 while the policy is the reference; then the mean log ratio of the minibatch's crossed pairs.
    trainee = make_trainable(load_policy(tiny_model_dir), reference=load_policy(tiny_model_dir))
    settings = msgspec.structs.replace(SMALL, epochs=1, minibatch_size=9)
    [metrics] = train_kto(trainee, THUMBS, settings, 0)
    assert metrics["preference/reference_point"] == pytest.approx(0.0, abs=1e-5)
    moved = load_policy(tiny_model_dir)
    with torch.no_grad():
        moved.model.lm_head.weight.mul_(0.7)
    trainee = make_trainable(moved, reference=load_policy(tiny_model_dir))
    [metrics] = train_kto(trainee, THUMBS, settings, 0)
    answers = [(each.prompt_token_ids, each.token_ids) for each in THUMBS]
    fresh = load_policy(tiny_model_dir).model
    ratios = []
    with torch.no_grad():
        for (prompt, _), other in zip(answers, mismatch(answers, 0), strict=True):
            response = answers[other][1]
            logits = fresh(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            picked = [
                each.log_softmax(-1)[range(len(response)), list(response)].sum() for each in (0.7 * logits, logits)
            ]
            ratios.append(float(picked[0] - picked[1]))
    assert metrics["preference/reference_point"] == pytest.approx(max(0.0, sum(ratios) / 9), rel=1e-4)
    assert metrics["preference/reference_point"] > 0.1


def test_before_the_first_step_every_thumb_loses_half_its_weight(tiny_model_dir: Path) -> None:
    # 4 ups and 5 downs: weights 1.25 and 1, so half of (4 * 1.25 + 5) / 9.
    settings = msgspec.structs.replace(SMALL, epochs=1, minibatch_size=9)
    [metrics] = train_kto(make_trainable(load_policy(tiny_model_dir)), THUMBS, settings, 0)
    assert metrics["policy/loss"] == pytest.approx(5 / 9, abs=1e-5)
    given = msgspec.structs.replace(settings, up_weight=1.0, down_weight=2.0)
    [metrics] = train_kto(make_trainable(load_policy(tiny_model_dir)), THUMBS, given, 0)
    assert metrics["policy/loss"] == pytest.approx((4 + 10) / 18, abs=1e-5)


def test_microbatches_change_no_gradient(tiny_model_dir: Path) -> None:
    norms = []
    for tokens in (1, 10_000):
        settings = msgspec.structs.replace(SMALL, epochs=1, minibatch_size=9, microbatch_tokens=tokens)
        [metrics] = train_kto(make_trainable(load_policy(tiny_model_dir)), THUMBS, settings, 0)
        norms.append(metrics["policy/grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_answers_with_thumbs_up_gain_on_those_with_thumbs_down(tiny_model_dir: Path) -> None:
    settings = msgspec.structs.replace(SMALL, epochs=12, minibatch_size=9)
    history = train_kto(make_trainable(load_policy(tiny_model_dir)), THUMBS, settings, 0)
    assert history[-1]["preference/margin"] > history[0]["preference/margin"] + 0.5
    assert history[-1]["preference/accuracy"] == 1.0


def test_a_training_that_is_resumed_ends_at_the_same_bits(tiny_model_dir: Path) -> None:
    whole, kept = make_trainable(load_policy(tiny_model_dir)), list[TrainingState]()
    metrics = train_kto(whole, THUMBS, SMALL, 3, Hooks(keep=kept.append))
    resumed = make_trainable(load_policy(tiny_model_dir))
    assert train_kto(resumed, THUMBS, SMALL, 3, Hooks(resume=kept[2])) == metrics[3:]
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("thumbs", "said"),
    [
        ([], "there are none"),
        ([thumb([1], "up"), thumb([2], "up")], "all 2 are up"),
        ([thumb([1], "up"), thumb([], "down")], "empty prompt or answer"),
    ],
)
def test_what_teaches_nothing_is_refused(tiny_policy: LoadedPolicy, thumbs: list[RatedResponse], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        train_kto(make_trainable(bandit_policy(tiny_policy)), thumbs, SMALL, 0)


def test_a_prompt_with_an_answer_of_another_row_never_exceeds_the_context(tmp_path: Path, tiny_model_dir: Path) -> None:
    short_of_room = replace(load_policy(tiny_model_dir), max_context=16)
    asked: list[int] = []

    def counting(*_arguments: object, position_ids: torch.Tensor, **_more: object) -> None:
        asked.append(1 + int(position_ids.max()))

    long_prompt = thumb((30, 31), "up", range(5, 17))
    long_answer = thumb(range(40, 53), "down", (20, 21))
    trainee = make_trainable(short_of_room)
    trainee.model.base_model.rotary_emb.register_forward_pre_hook(
        lambda _module, arguments, named: counting(*arguments, **named), with_kwargs=True
    )
    train_kto(trainee, [long_prompt, long_answer], msgspec.structs.replace(SMALL, epochs=1), 0)
    assert max(asked) <= 16
