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


def test_a_batch_holds_rows_padded_on_the_right_and_both_lengths() -> None:
    batch = AnswerBatch.of([((5, 6), (7,)), ((8,), (9, 10, 11))], torch.device("cpu"))
    assert batch.input_ids.tolist() == [[5, 6, 7, 0], [8, 9, 10, 11]]
    assert batch.prompt_lengths.tolist() == [2, 1]
    assert batch.lengths.tolist() == [3, 4]


def test_approval_is_a_logistic_of_the_score(tiny_policy: LoadedPolicy) -> None:
    model = RewardModel(copy.deepcopy(tiny_policy.model.base_model))
    with torch.no_grad():
        model.log_alpha.fill_(math.log(2))
        model.threshold.fill_(1.0)
        # alpha = 2, b = 1: a score of 0.5 is a toss-up, (1 + log 3) / 2 is approved by 3 in 4.
        approved = model.approval(torch.tensor([0.5, (1 + math.log(3)) / 2])).tolist()
    assert approved == pytest.approx([0.5, 0.75])
