"""Measuring candidates with a tiny real model: answers, wins, KL, repetition, and the whole decision."""

import copy
import dataclasses
import math

import pytest
import torch

from rlhf_core.gate import answer, count_wins, evaluate_candidate, mean_ref_kl, repeats_itself
from rlhf_core.gate_rules import INSUFFICIENT, GateSettings
from rlhf_core.learning.reward.evaluation import features
from rlhf_core.learning.rollouts import SampledResponse
from rlhf_core.models.heads import RewardModel
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.records import RatedResponse

PROMPTS = [(10 + at, 3, 4) for at in range(12)]
SETTINGS = GateSettings(max_new_tokens=6, max_running=4, end_rate=0.0, repetition=1.0, least_feedback=1)
LIKED = 77


def said(*token_ids: int, logprobs: tuple[float, ...] = ()) -> SampledResponse:
    return SampledResponse((1, 2), token_ids, logprobs or (0.0,) * len(token_ids), ended=True)


def preferring(policy: LoadedPolicy, token_id: int, by: float) -> LoadedPolicy:
    """A copy of the policy that says `token_id` more often: its logit is raised everywhere."""
    model = copy.deepcopy(policy.model)
    head = model.get_output_embeddings()
    bias = torch.nn.Linear(head.in_features, head.out_features, bias=True)
    with torch.no_grad():
        bias.weight.copy_(head.weight)
        bias.bias.zero_()
        bias.bias[token_id] = by
    model.set_output_embeddings(bias)
    return dataclasses.replace(policy, model=model, checkpoint_id="policy-candidate")


@pytest.fixture(scope="module")
def judge(tiny_policy: LoadedPolicy) -> RewardModel:
    """A reward model whose head was solved to like answers that end in LIKED, without any training."""
    trunk = copy.deepcopy(tiny_policy.model).base_model
    model = RewardModel(trunk).eval()
    answers = [(prompt, (last,)) for prompt in PROMPTS for last in (LIKED, 150, 200, 250)]
    read = features(model, answers)
    liked = torch.tensor([1.0 if response == (LIKED,) else -1.0 for _, response in answers])
    with torch.no_grad():
        model.head.weight.copy_(torch.linalg.lstsq(read, liked[:, None], driver="gelsd").solution.T)
    return model


@pytest.mark.parametrize(
    ("token_ids", "repeats"),
    [
        ((), False),
        ((1, 2, 3), False),
        ((1, 2, 3, 4) * 2, False),  # twice is not more than twice
        ((1, 2, 3, 4) * 3, True),
        ((7,) * 5, False),  # the run 7 7 7 7 starts at 0 and 1
        ((7,) * 6, True),  # ... and at 2
        ((1, 2, 3, 4, 9, 1, 2, 3, 4, 8, 1, 2, 3, 4), True),
    ],
)
def test_an_answer_repeats_itself_when_four_tokens_come_a_third_time(token_ids: tuple[int, ...], repeats: bool) -> None:
    assert repeats_itself(token_ids) is repeats


def test_wins_count_once_ties_half_and_equal_answers_are_ties_whatever_their_scores() -> None:
    ours = [said(1), said(2), said(3), said(4), said(5)]
    theirs = [said(9), said(9), said(3), said(9), said(9)]
    contest = count_wins(ours, theirs, torch.tensor([2.0, 0.0, 5.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 0.0, 1.0, 2.0]))
    # Won, lost, the same answer, the same score, won: 2 wins and 2 ties.
    assert contest == (3.0, 2)


def test_both_policies_get_the_same_seeds_so_the_same_policy_answers_the_same(
    tiny_policy: LoadedPolicy,
) -> None:
    first = answer(tiny_policy, PROMPTS, SETTINGS)
    again = answer(tiny_policy, PROMPTS, GateSettings(max_new_tokens=6, max_running=1))
    assert [one.token_ids for one in first] == [one.token_ids for one in again]
    assert len({one.token_ids for one in first}) > 1


def test_a_policy_has_no_kl_from_itself(tiny_policy: LoadedPolicy) -> None:
    assert mean_ref_kl(answer(tiny_policy, PROMPTS, SETTINGS), tiny_policy, 1.0) == pytest.approx(0.0, abs=1e-3)


def test_ref_kl_is_summed_over_tokens_and_averaged_over_answers(tiny_policy: LoadedPolicy) -> None:
    # Answers of 1 and 3 tokens whose logprobs each lie 0.5 nats above the reference's: (0.5 + 1.5) / 2 = 1.
    answers = [
        dataclasses.replace(one, logprobs=tuple(logprob + 0.5 for logprob in one.logprobs))
        for limit in (1, 3)
        for one in answer(tiny_policy, PROMPTS[:1], GateSettings(max_new_tokens=limit, seed=2))
    ]
    assert [len(one.token_ids) for one in answers] == [1, 3]
    assert mean_ref_kl(answers, tiny_policy, 1.0) == pytest.approx(1.0, abs=1e-3)


def test_the_estimated_kl_agrees_with_the_exact_one(tiny_policy: LoadedPolicy) -> None:
    candidate = preferring(tiny_policy, LIKED, by=4.0)
    prompt = PROMPTS[0]
    with torch.inference_mode():
        input_ids = torch.tensor([prompt])
        ours, theirs = (
            policy.model(input_ids=input_ids).logits[0, -1].log_softmax(-1) for policy in (candidate, tiny_policy)
        )
    exact = float((ours.exp() * (ours - theirs)).sum())
    spread = math.sqrt(float((ours.exp() * (ours - theirs).square()).sum()) - exact**2)
    answers = answer(candidate, [prompt] * 600, GateSettings(max_new_tokens=1))
    assert abs(mean_ref_kl(answers, tiny_policy, 1.0) - exact) < 4 * spread / math.sqrt(600)
    assert exact > 0.01


def thumbs(count: int) -> list[RatedResponse]:
    """Thumbs that the judge predicts and length cannot: both kinds have one token."""
    return [
        RatedResponse(
            event_id=f"e{at}",
            rater="r",
            interaction_id=f"i{at}",
            policy_version=1,
            prompt_token_ids=PROMPTS[at % 12],
            token_ids=(LIKED if at % 2 else 150,),
            value="up" if at % 2 else "down",
            prompt_key=f"k{at}",
        )
        for at in range(count)
    ]


def test_a_candidate_that_the_judge_likes_better_is_accepted(tiny_policy: LoadedPolicy, judge: RewardModel) -> None:
    settings = GateSettings(max_new_tokens=1, end_rate=0.0, kl_budget=50.0)
    candidate = preferring(tiny_policy, LIKED, by=30.0)
    report = evaluate_candidate(
        candidate, tiny_policy, tiny_policy, judge, judge, PROMPTS, thumbs(12), [], settings, now=7.0
    )
    assert report.accepted, report.reasons
    assert (report.checkpoint_id, report.parent_version, report.created_at) == ("policy-candidate", 1, 7.0)
    assert report.metrics["win_rate"] == 1.0
    assert report.metrics["reward_accuracy"] == 1.0
    assert report.metrics["length_accuracy"] == 0.5
    assert report.metrics["ref_kl"] > 1.0


def test_a_worse_candidate_is_rejected_by_the_win_rate(tiny_policy: LoadedPolicy, judge: RewardModel) -> None:
    settings = GateSettings(max_new_tokens=1, end_rate=0.0, kl_budget=50.0)
    liked = preferring(tiny_policy, LIKED, by=30.0)
    report = evaluate_candidate(
        tiny_policy, liked, tiny_policy, judge, judge, PROMPTS, thumbs(12), [], settings, now=0.0
    )
    assert [check.name for check in report.checks if not check.passed] == ["win_rate"]


def test_the_live_policy_against_itself_ties_everywhere(tiny_policy: LoadedPolicy, judge: RewardModel) -> None:
    settings = GateSettings(max_new_tokens=4, end_rate=0.0, repetition=1.0)
    report = evaluate_candidate(
        tiny_policy, tiny_policy, tiny_policy, judge, judge, PROMPTS, thumbs(12), [], settings, now=0.0
    )
    assert (report.metrics["win_rate"], report.metrics["ties"], report.metrics["length_ratio"]) == (
        0.5,
        12.0,
        1.0,
    )


def test_without_prompts_and_feedback_the_gate_stays_shut(tiny_policy: LoadedPolicy, judge: RewardModel) -> None:
    report = evaluate_candidate(
        tiny_policy, tiny_policy, tiny_policy, judge, judge, [], [], [], GateSettings(), now=0.0
    )
    assert not report.accepted
    assert sum(INSUFFICIENT in reason for reason in report.reasons) == 3
