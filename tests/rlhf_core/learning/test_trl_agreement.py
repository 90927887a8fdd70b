"""Our losses are TRL's, where TRL is installed: one step of its trainers on a tiny model gives the loss that ours give.

Not among this project's requirements: elsewhere these tests are skipped. Seen to pass with TRL 1.16.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_core.learning.alternatives_settings import DPOSettings, KTOSettings
from rlhf_core.learning.answer_logprobs import Answer, answer_logprobs
from rlhf_core.learning.dpo import train_dpo
from rlhf_core.learning.kto import ReferredThumb, ThumbLearner
from rlhf_core.learning.policy_losses import ThumbWeights
from rlhf_core.learning.policy_steps import PolicySteps, alone
from rlhf_core.learning.preference_losses import LEFT, centering_losses, pair_losses
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.trainable import Trainable, make_trainable
from tests.rlhf_core.learning.bandit import pair

trl: Any = pytest.importorskip("trl", minversion="1.0")
datasets: Any = pytest.importorskip("datasets")

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
]

PROMPTS = ("why is my order late", "the router is slow", "is the fox quick", "my order waits again")
GOOD = (" it waits", " the dog jumps over the router", " over the lazy dog", " slow again")
BAD = (" no", " the fox", " no no no no", " the quick brown fox jumps")


@pytest.fixture(autouse=True)
def quiet() -> None:
    warnings.simplefilter("ignore")


def moved(directory: Path) -> LoadedPolicy:
    """A policy that is not its reference."""
    policy = load_policy(directory)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.03 * torch.randn(weight.shape, generator=generator))
    return policy


def trainee_of(directory: Path) -> Trainable:
    return make_trainable(moved(directory), reference=load_policy(directory))


def encoded(policy: LoadedPolicy, answers: Sequence[str]) -> list[Answer]:
    """Prompts and responses as TRL splits them: what follows the prompt's tokens, end token included."""
    found = []
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        before = policy.tokenizer(prompt)["input_ids"]
        whole = policy.tokenizer(prompt + answer + policy.tokenizer.eos_token)["input_ids"]
        assert whole[: len(before)] == before
        found.append((tuple(before), tuple(whole[len(before) :])))
    return found


def one_step(trainer: Any) -> dict[str, float]:
    """What a TRL trainer logs of its first step."""
    trainer.train()
    return next(each for each in trainer.state.log_history if "loss" in each)


def arguments(directory: Path) -> dict[str, Any]:
    return {
        "output_dir": str(directory),
        "per_device_train_batch_size": 4,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 0.0,
        "report_to": [],
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "use_cpu": True,
    }


def test_dpo_agrees(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = moved(tiny_model_dir)
    rows = {"prompt": list(PROMPTS), "chosen": list(GOOD), "rejected": list(BAD)}
    trainer = trl.DPOTrainer(
        model=policy.model,
        ref_model=load_policy(tiny_model_dir).model,
        args=trl.DPOConfig(beta=0.3, **arguments(tmp_path)),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=policy.tokenizer,
    )
    theirs = one_step(trainer)
    trainee = trainee_of(tiny_model_dir)
    sides = zip(encoded(trainee.policy, GOOD), encoded(trainee.policy, BAD), strict=True)
    pairs = [pair(chosen, rejected, prompt) for (prompt, chosen), (_, rejected) in sides]
    [ours] = train_dpo(trainee, pairs, DPOSettings(kl_coef=0.3, minibatch_size=4, learning_rate=0.0), 0)
    assert abs(ours["preference/margin"]) > 0.01
    assert ours["policy/loss"] == pytest.approx(theirs["loss"], abs=2e-4)
    assert ours["preference/chosen_reward"] == pytest.approx(theirs["rewards/chosen"], abs=1e-3)
    assert ours["preference/rejected_reward"] == pytest.approx(theirs["rewards/rejected"], abs=1e-3)
    assert ours["policy/chosen_logprob"] == pytest.approx(theirs["logps/chosen"], rel=1e-4)
    assert ours["policy/grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


def test_kto_agrees(tiny_model_dir: Path, tmp_path: Path) -> None:
    policy = moved(tiny_model_dir)
    labels = [True, False, True, False]
    answers = [good if up else bad for good, bad, up in zip(GOOD, BAD, labels, strict=True)]
    rows = {"prompt": list(PROMPTS), "completion": answers, "label": labels}
    trainer = trl.KTOTrainer(
        model=policy.model,
        ref_model=load_policy(tiny_model_dir).model,
        args=trl.KTOConfig(beta=0.3, desirable_weight=1.2, undesirable_weight=0.9, **arguments(tmp_path)),
        train_dataset=datasets.Dataset.from_dict(rows),
        processing_class=policy.tokenizer,
    )
    theirs = one_step(trainer)
    trainee = trainee_of(tiny_model_dir)
    settings = KTOSettings(kl_coef=0.3, minibatch_size=4, learning_rate=0.0)
    own = encoded(trainee.policy, answers)
    # Theirs are rotated by one within the batch: prompt i stands before response i - 1.
    crossed = [(prompt, own[at - 1][1]) for at, (prompt, _) in enumerate(own)]
    devices = alone(trainee)
    with trainee.reference() as reference:
        known, other = answer_logprobs(reference, own + crossed, settings, devices).view(2, -1).tolist()
    thumbs = [
        ReferredThumb(prompt, response, crossed[at][1], labels[at], known[at], other[at])
        for at, (prompt, response) in enumerate(own)
    ]
    ours = ThumbLearner(settings, ThumbWeights(1.2, 0.9), PolicySteps(trainee, settings, devices)).improve(thumbs, 1.0)
    assert theirs["kl"] > 0.01
    assert ours["preference/reference_point"] == pytest.approx(theirs["kl"], abs=1e-3)
    assert ours["policy/loss"] == pytest.approx(theirs["loss"], abs=2e-4)
    assert ours["preference/up_reward"] == pytest.approx(theirs["rewards/chosen"], abs=1e-3)
    assert ours["preference/down_reward"] == pytest.approx(theirs["rewards/rejected"], abs=1e-3)
    assert ours["policy/grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-2)


def test_the_reward_loss_agrees(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_policy(tiny_model_dir).tokenizer
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny_model_dir, num_labels=1)
    with torch.no_grad():
        model.score.weight.normal_()
    chosen = [
        tokenizer(prompt + good + tokenizer.eos_token)["input_ids"] for prompt, good in zip(PROMPTS, GOOD, strict=True)
    ]
    rejected = [
        tokenizer(prompt + bad + tokenizer.eos_token)["input_ids"] for prompt, bad in zip(PROMPTS, BAD, strict=True)
    ]
    with torch.no_grad():
        left, right = (
            torch.stack([model(torch.tensor([row])).logits[0, 0] for row in rows]) for rows in (chosen, rejected)
        )
    margins = [0.0, 0.5, 1.0, 0.25]
    trainer = trl.RewardTrainer(
        model=model,
        args=trl.RewardConfig(center_rewards_coefficient=0.01, **arguments(tmp_path)),
        train_dataset=datasets.Dataset.from_dict({"chosen_ids": chosen, "rejected_ids": rejected, "margin": margins}),
        processing_class=tokenizer,
    )
    theirs = one_step(trainer)
    outcomes = torch.full((4,), LEFT)
    losses = pair_losses(left - right, outcomes, torch.zeros(()), torch.tensor(margins))
    ours = float((losses + 0.01 * centering_losses(left, right)).mean())
    assert ours == pytest.approx(theirs["loss"], rel=1e-3)
