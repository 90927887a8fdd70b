"""The report: every baseline beside the model on the same judgements, and a sentence where one is not beaten."""

from __future__ import annotations

import math
import random
from pathlib import Path

import msgspec
import pytest
import torch
from transformers import LlamaForCausalLM

from rlhf_core.learning.reward.evaluation import answers_of
from rlhf_core.learning.reward.files import load_reward, save_reward
from rlhf_core.learning.reward.report import (
    RewardReport,
    calibrate_reward,
    mean_logprobs,
    report_reward,
    table,
)
from rlhf_core.learning.reward.training import RewardSettings, TrainedReward, train_reward_model
from rlhf_core.learning.reward.words import fit_words
from rlhf_core.models.documents import use_documents
from rlhf_core.records import PreferencePair
from tests.rlhf_core.learning.reward.simulated_people import make_trunk, simulated_pairs, simulated_thumbs, worth

SETTINGS = RewardSettings(epochs=0, ridge=0.3, ensemble=0)


@pytest.fixture(scope="module")
def trunk_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trunk(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def trained(trunk_dir: Path) -> TrainedReward:
    return train_reward_model(trunk_dir, simulated_thumbs(150, 1), simulated_pairs(400, 2), SETTINGS, 0)


def held_pairs() -> list[PreferencePair]:
    """200 decisive ones by 20 raters, and 40 ties between answers of nearly the same worth."""
    pairs = [msgspec.structs.replace(each, rater=f"r{at % 20}") for at, each in enumerate(simulated_pairs(200, 5))]
    near = [each for each in simulated_pairs(1500, 6) if _apart(each) < 0.5][:40]
    return pairs + [msgspec.structs.replace(each, tie=True, chosen_side="left") for each in near]


def _apart(pair: PreferencePair) -> float:
    return abs(worth(pair.chosen_token_ids) - worth(pair.rejected_token_ids))


def whole_policy(directory: Path) -> LlamaForCausalLM:
    policy = LlamaForCausalLM.from_pretrained(directory)
    use_documents(policy)
    return policy


@pytest.fixture(scope="module")
def report(trained: TrainedReward, trunk_dir: Path) -> RewardReport:
    train = (simulated_thumbs(150, 1), simulated_pairs(400, 2))
    held = held_pairs()
    return report_reward(
        trained.model,
        train,
        (simulated_thumbs(80, 7), held),
        calibration=calibrate_reward(trained.model, held),
        split="by prompt",
        fit=trained.metrics,
        axes=trained.axes,
        reference=mean_logprobs(whole_policy(trunk_dir)),
        previous=trained.model,
    )


def test_every_baseline_stands_beside_the_model_on_the_same_judgements(report: RewardReport) -> None:
    names = [each.name for each in report.baselines]
    assert names == ["coin", "always_left", "longer", "shorter", "words", "reference_logprob", "previous_model"]
    assert {each.choices.n for each in (report.model, *report.baselines)} == {200}  # ties are left out
    assert {each.thumbs.n for each in (report.model, *report.baselines)} == {80}
    by_name = {each.name: each for each in report.baselines}
    assert by_name["coin"].choices.value == 0.5
    lefts = sum(each.chosen_side == "left" for each in held_pairs() if not each.tie)
    assert by_name["always_left"].choices.value == pytest.approx(lefts / 200)
    # All answers are equally long, so neither rule about length knows anything.
    assert (by_name["longer"].choices.value, by_name["shorter"].choices.value) == (0.5, 0.5)
    assert by_name["previous_model"].choices == report.model.choices
    assert by_name["words"].choices.value > 0.7  # worth is a sum over tokens: words are a strong rule here
    assert report.model.choices.value > 0.75
    assert report.model.thumbs.value > 0.8
    assert report.model.choices.method == "bootstrap by rater"


def test_a_baseline_that_is_not_beaten_is_named_in_a_sentence(report: RewardReport) -> None:
    said = "\n".join(report.said)
    assert "it does not beat previous_model" in said
    assert "coin" not in said
    assert "honest: not enough data" in said


def test_ties_are_measured_apart(report: RewardReport) -> None:
    assert report.n_ties == 40
    assert report.tie_auc > 0.7


def test_the_report_as_numbers_and_as_a_table(report: RewardReport) -> None:
    metrics = report.as_metrics()
    assert all(math.isfinite(value) for value in metrics.values())
    assert {"ece", "brier", "nll", "temperature", "baseline_words", "choices_low", "tie_auc"} <= set(metrics)
    lines = table(report)
    assert len([line for line in lines if line.startswith(("reward model", "coin", "words"))]) == 3
    assert lines[1].split()[2] == f"{report.model.choices.value:.1%}"
    assert msgspec.json.decode(msgspec.json.encode(report), type=RewardReport) == report


def test_calibration_moves_no_score_and_makes_probabilities_true(trained: TrainedReward) -> None:
    pairs = [each for each in simulated_pairs(3000, 9) if not each.tie]
    found = calibrate_reward(trained.model, pairs)
    assert float(trained.model.temperature) == pytest.approx(found.temperature)
    assert found.ece < 0.06
    calibrate_reward(trained.model, pairs[:10])
    assert float(trained.model.temperature) == 1.0  # too few to say


def test_nothing_held_out_is_said(trained: TrainedReward) -> None:
    train = (simulated_thumbs(20, 1), simulated_pairs(20, 2))
    empty = report_reward(
        trained.model, train, ([], []), calibration=calibrate_reward(trained.model, []), split="none", fit={}
    )
    assert empty.said == ("nothing was held out, so nothing is known of this reward model",)
    assert all(math.isfinite(value) for value in empty.as_metrics().values())
    assert table(empty)[1].split() == ["reward", "model", "-", "-", "-"]


def test_words_find_which_tokens_people_like() -> None:
    words = fit_words(simulated_thumbs(200, 1), simulated_pairs(200, 2))
    liked, disliked, unknown = words.score([((1,), (17, 17)), ((1,), (10,)), ((1,), (299,))]).tolist()
    assert liked > 0.5 > -0.5 > disliked
    assert unknown == 0.0


def test_the_reference_s_mean_logprob_is_per_token(trunk_dir: Path) -> None:
    policy = whole_policy(trunk_dir)
    answers = answers_of(simulated_thumbs(5, 1), [])
    prompt, response = answers[0]
    with torch.no_grad():
        logprobs = policy(input_ids=torch.tensor([[*prompt, *response]])).logits[0].log_softmax(-1)
    at = range(len(prompt) - 1, len(prompt) + len(response) - 1)
    by_hand = sum(float(logprobs[place, token]) for place, token in zip(at, response, strict=True)) / len(response)
    assert float(mean_logprobs(policy)(answers)[0]) == pytest.approx(by_hand, abs=1e-5)


def test_a_model_of_the_first_format_still_loads_with_the_same_scores(trained: TrainedReward, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_reward(trained.model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    first = ("gain", "bias", "log_alpha", "threshold")
    old = {name: value for name, value in tensors.items() if name.startswith(("trunk.", "head.")) or name in first}
    save_file(old, tmp_path / "model.safetensors")
    record = msgspec.json.decode((tmp_path / "reward.json").read_bytes())
    kept = ("baselines", "gain", "bias", "alpha", "threshold", "settings", "parameters")
    (tmp_path / "reward.json").write_bytes(msgspec.json.encode({name: record[name] for name in kept}))
    loaded = load_reward(tmp_path)
    rng = random.Random(0)
    left, right = torch.tensor([rng.gauss(0, 1) for _ in range(4)]), torch.zeros(4)
    with torch.no_grad():
        trained.model.temperature.fill_(1.0)
        assert torch.allclose(loaded.choice_logits(left, right), trained.model.choice_logits(left, right), atol=1e-6)
    assert loaded.learned_axes == ()
    assert float(loaded.eta.detach()) < 1e-12
