"""The reward head's start, and the one rule of the batches it reads."""

import copy
import math

import pytest
import torch

from rlhf_core.models.heads import AnswerBatch, RewardModel
from rlhf_core.models.load import LoadedPolicy


def test_the_head_starts_small_and_from_its_generator(tiny_policy: LoadedPolicy) -> None:
    trunk = copy.deepcopy(tiny_policy.model.base_model)
    one, again, other = (RewardModel(trunk, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one.head.weight, again.head.weight)
    assert not torch.equal(one.head.weight, other.head.weight)
    # 64 weights of N(0, 1 / 65): their standard deviation has a standard error of 0.124 / sqrt(128) = 0.011.
    assert one.head.weight.std().item() == pytest.approx(1 / math.sqrt(65), abs=0.044)
    assert one.head.bias.item() == 0.0


def test_a_batch_holds_documents_end_to_end_and_where_each_response_is() -> None:
    batch = AnswerBatch.of([((5, 6), (7,)), ((8,), (9, 10, 11))], torch.device("cpu"))
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 9, 10, 11]
    assert batch.documents.positions.tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert (batch.said.tolist(), batch.lengths.tolist()) == ([2, 4, 5, 6], [1, 3])


def test_responses_that_share_a_prompt_continue_its_positions() -> None:
    batch = AnswerBatch.of_groups([((5, 6), ((7,), (8, 9)))], torch.device("cpu"))
    assert batch.token_ids.tolist() == [5, 6, 7, 8, 9]
    assert (batch.said.tolist(), batch.lengths.tolist()) == ([2, 3, 4], [1, 2])
    assert batch.documents.positions.tolist() == [0, 1, 2, 2, 3]


def test_a_shared_prompt_reads_the_same_as_two_rows(tiny_policy: LoadedPolicy) -> None:
    model = RewardModel(copy.deepcopy(tiny_policy.model.base_model))
    cpu = torch.device("cpu")
    groups = [((5, 6, 7), ((8, 9, 1), (10, 1))), ((11,), ((12, 13, 14, 1), (15,)))]
    apart = [(prompt, response) for prompt, responses in groups for response in responses]
    with torch.no_grad():
        shared, alone = model.features(AnswerBatch.of_groups(groups, cpu)), model.features(AnswerBatch.of(apart, cpu))
    assert torch.allclose(shared, alone, atol=1e-5)
    assert not torch.allclose(alone[0], alone[1], atol=1e-2)


def test_changing_the_unit_changes_neither_odds_of_choices_nor_the_slope_of_length(tiny_policy: LoadedPolicy) -> None:
    model = RewardModel(copy.deepcopy(tiny_policy.model.base_model))
    left, right = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    with torch.no_grad():
        model.length_slope.fill_(0.8)
        before = model.choice_logits(left, right)
        model.normalise(mean=0.5, std=4.0)
        after = model.choice_logits((left - 0.5) / 4.0, (right - 0.5) / 4.0)
        assert torch.allclose(before, after)
        assert float(model.length_slope) == pytest.approx(0.2)
        model.temperature.fill_(2.0)
        assert torch.allclose(model.choice_logits(left, right), 2.0 * (left - right))  # 4 points of odds, halved


def test_approval_is_a_logistic_of_the_score(tiny_policy: LoadedPolicy) -> None:
    model = RewardModel(copy.deepcopy(tiny_policy.model.base_model))
    with torch.no_grad():
        model.log_alpha.fill_(math.log(2))
        model.threshold.fill_(1.0)
        # alpha = 2, b = 1: a score of 0.5 is a toss-up, (1 + log 3) / 2 is approved by 3 in 4.
        approved = model.approval(torch.tensor([0.5, (1 + math.log(3)) / 2])).tolist()
    assert approved == pytest.approx([0.5, 0.75])
