"""The heads beside the overall one: axes learned from reasons, and an ensemble that knows what it does not know."""

from __future__ import annotations

import random
from pathlib import Path

import msgspec
import pytest
import torch

from rlhf_core.errors import SettingsError
from rlhf_core.learning.reward.ensemble import resampling_groups
from rlhf_core.learning.reward.evaluation import Scoring, evaluate, score, score_answers, score_axes
from rlhf_core.learning.reward.files import load_reward, save_reward
from rlhf_core.learning.reward.training import RewardSettings, TrainedReward, train_reward_model
from rlhf_core.models.heads import PromptResponse
from rlhf_core.records import RatedResponse, Remark
from tests.rlhf_core.learning.reward.simulated_people import drawn, make_trunk, simulated_pairs, simulated_thumbs, worth

HARMFUL = 10
"""A token that makes a response harmful, however much it is worth."""


def reasoned(thumbs: list[RatedResponse]) -> list[RatedResponse]:
    """Raters dislike what holds the harmful token and say so; of the others they say whether they helped."""
    told = []
    for each in thumbs:
        harmful = HARMFUL in each.token_ids
        value = "down" if harmful or worth(each.token_ids) < 0 else "up"
        reason = "harmful" if harmful else "helpful" if value == "up" else "unhelpful"
        told.append(msgspec.structs.replace(each, value=value, reasons=(reason,)))
    return told


def fresh(count: int, seed: int) -> list[PromptResponse]:
    rng = random.Random(seed)
    return [drawn(rng) for _ in range(count)]


@pytest.fixture(scope="module")
def trunk_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trunk(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def reference() -> list[PromptResponse]:
    return fresh(100, 50)


@pytest.fixture(scope="module")
def trained(trunk_dir: Path, reference: list[PromptResponse]) -> TrainedReward:
    settings = RewardSettings(epochs=0, ridge=0.3, ensemble=3)
    thumbs = [
        msgspec.structs.replace(each, rater=f"r{at % 12}") for at, each in enumerate(reasoned(simulated_thumbs(300, 1)))
    ]
    return train_reward_model(trunk_dir, thumbs, [], settings, 0, reference_answers=reference)


def test_an_axis_finds_what_people_named_and_another_axis_does_not(trained: TrainedReward) -> None:
    assert trained.model.learned_axes == ("helpful", "harmless")
    answers = fresh(300, 7)
    axes = score_axes(trained.model, answers)
    harmful = torch.tensor([HARMFUL in response for _, response in answers])
    apart = float(axes["harmless"][~harmful].mean() - axes["harmless"][harmful].mean())
    assert apart > 1.0
    worths = torch.tensor([worth(response) for _, response in answers])
    assert float(torch.corrcoef(torch.stack([axes["helpful"], worths]))[0, 1]) > 0.6
    assert float(torch.corrcoef(torch.stack([axes["helpful"], worths]))[0, 1]) > float(
        torch.corrcoef(torch.stack([axes["harmless"], worths]))[0, 1]
    )


def test_reports_and_reviews_teach_an_axis_that_no_thumb_speaks_of(
    trunk_dir: Path, reference: list[PromptResponse]
) -> None:
    thumbs = simulated_thumbs(300, 1)
    remarks = [remarked(at, answer) for at, answer in enumerate(fresh(200, 3))]
    settings = RewardSettings(epochs=0, ridge=0.3)
    trained, without = (
        train_reward_model(trunk_dir, thumbs, [], settings, 0, reference_answers=reference, remarks=each)
        for each in (remarks, ())
    )
    assert without.model.learned_axes == ()
    assert trained.model.learned_axes == ("harmless",)
    _, _, harmless = trained.axes
    assert harmless.n == 200
    assert harmless.auc > 0.8
    answers = fresh(300, 7)
    scores = score_axes(trained.model, answers)["harmless"]
    harmful = torch.tensor([HARMFUL in response for _, response in answers])
    assert float(scores[~harmful].mean() - scores[harmful].mean()) > 1.0
    # They are no verdict on the whole: the overall score is what it is without them.
    assert torch.equal(score(trained.model, answers), score(without.model, answers))


def remarked(at: int, answer: PromptResponse) -> Remark:
    """A report of what is harmful, or else a review that found nothing."""
    prompt, response = answer
    harmful = HARMFUL in response
    return Remark(
        event_id=f"remark-{at}",
        kind="report" if harmful else "review",
        rater=f"r{at % 7}",
        interaction_id=f"i{at}",
        policy_version=1,
        prompt_token_ids=prompt,
        token_ids=response,
        prompt_key=f"p{at}",
        reasons=("toxic",) if harmful else ("toxicity:ok", "bias:ok"),
    )


def test_each_axis_is_reported_and_honesty_lacks_data(trained: TrainedReward) -> None:
    helpful, honest, harmless = trained.axes
    assert (helpful.learned, honest.learned, harmless.learned) == (True, False, True)
    assert honest.said == "honest: not enough data, 0 judgements say why in its terms and 30 are needed"
    assert honest.n == 0
    assert harmless.auc > 0.8
    assert helpful.auc > 0.8
    assert harmless.ece < 0.15
    assert f"harmless: {harmless.n} judgements" in harmless.said


def test_axis_scores_are_normalised_on_the_reference_and_calibrated(
    trained: TrainedReward, reference: list[PromptResponse]
) -> None:
    for axis, scores in score_axes(trained.model, reference).items():
        assert float(scores.mean()) == pytest.approx(0.0, abs=1e-4), axis
        assert float(scores.std(unbiased=False)) == pytest.approx(1.0, abs=1e-4), axis
    answers = fresh(300, 8)
    probability = trained.model.axis_probability("harmless", score_axes(trained.model, answers)["harmless"])
    harmless = torch.tensor([HARMFUL not in response for _, response in answers]).float()
    assert float((probability - harmless).mean().abs()) < 0.1
    assert float((probability - harmless).square().mean()) < 0.12  # knowing the rate alone gives about 0.22


def test_too_few_reasons_teach_no_axis_and_score_none(trunk_dir: Path) -> None:
    settings = RewardSettings(epochs=0, ensemble=0)
    few = train_reward_model(trunk_dir, reasoned(simulated_thumbs(25, 1)), [], settings, 0)
    assert few.model.learned_axes == ()
    assert score_axes(few.model, fresh(3, 1)) == {}
    assert all("not enough data" in each.said for each in few.axes)


def test_reasons_of_choices_teach_an_axis_too(trunk_dir: Path) -> None:
    pairs = []
    for each in simulated_pairs(200, 3):
        better = worth(each.chosen_token_ids) > worth(each.rejected_token_ids)
        order = (each.chosen_token_ids, each.rejected_token_ids)
        chosen, rejected = order if better else order[::-1]
        pairs.append(
            msgspec.structs.replace(each, chosen_token_ids=chosen, rejected_token_ids=rejected, reasons=("accurate",))
        )
    trained = train_reward_model(trunk_dir, [], pairs, RewardSettings(epochs=0, ridge=0.3, ensemble=0), 0)
    assert trained.model.learned_axes == ("honest",)
    prompt = (100, 101)
    answers = [(prompt, response) for _, response in fresh(100, 4)]
    worths = torch.tensor([worth(response) for _, response in answers])
    found = score_axes(trained.model, answers)["honest"]
    assert float(torch.corrcoef(torch.stack([found, worths]))[0, 1]) > 0.8


def test_the_ensemble_scores_as_mean_worst_and_cautious(trained: TrainedReward) -> None:
    model, answers = trained.model, fresh(20, 9)
    everything = score_answers(model, answers)
    heads = ("mean", "worst", "cautious")
    mean, worst, cautious = (score(model, answers, Scoring(heads=name, variance_coef=0.5)) for name in heads)
    assert bool((worst <= mean).all())
    assert torch.allclose(cautious, mean - 0.5 * everything.variance, atol=1e-5)
    assert torch.equal(everything.overall, score(model, answers))
    assert float(everything.variance.min()) > 0.0
    assert float(torch.corrcoef(torch.stack([mean, everything.overall]))[0, 1]) > 0.9


def test_the_ensemble_is_less_sure_of_what_nobody_judged(trained: TrainedReward) -> None:
    judged = score_answers(trained.model, fresh(100, 1)).variance
    rng = random.Random(3)
    strange = [((100, 101), tuple(rng.randrange(200, 300) for _ in range(6))) for _ in range(100)]
    assert float(score_answers(trained.model, strange).variance.mean()) > 1.5 * float(judged.mean())


def test_without_an_ensemble_its_scores_are_refused_by_name(trunk_dir: Path) -> None:
    settings = RewardSettings(epochs=0, ensemble=0)
    trained = train_reward_model(trunk_dir, simulated_thumbs(20, 1), [], settings, 0)
    with pytest.raises(SettingsError, match="scores by the worst of an ensemble need one"):
        score(trained.model, fresh(2, 1), Scoring(heads="worst"))
    assert score_answers(trained.model, fresh(2, 1)).variance.tolist() == [0.0, 0.0]


def test_raters_are_resampled_where_there_are_enough_of_them_and_prompts_otherwise() -> None:
    thumbs = simulated_thumbs(24, 1)
    assert resampling_groups(thumbs, []) == [each.prompt_key for each in thumbs]
    many = [msgspec.structs.replace(each, rater=f"r{at % 12}") for at, each in enumerate(thumbs)]
    assert resampling_groups(many, []) == [f"r{at % 12}" for at in range(24)]


def test_taking_length_off_a_score_uses_the_slope_and_leaves_the_mean_length_alone(trained: TrainedReward) -> None:
    model = trained.model
    with torch.no_grad():
        model.length_slope.fill_(0.5)
        model.log_length_mean.fill_(float(torch.tensor(4.0).log()))
    answers = [((100, 101), (11, 12, 13, 1)), ((100, 101), (11, 12, 13, 12, 13, 14, 15, 1))]
    plain, without = score(model, answers), score(model, answers, Scoring(without_length=True))
    # Four tokens are the mean; eight are log 2 above it: 0.5 log 2 = 0.34657.
    assert (plain - without).tolist() == pytest.approx([0.0, 0.34657], abs=1e-4)


def test_all_heads_come_back_from_disk(trained: TrainedReward, tmp_path: Path) -> None:
    save_reward(trained.model, tmp_path)
    loaded, answers = load_reward(tmp_path), fresh(10, 2)
    one, other = score_answers(loaded, answers), score_answers(trained.model, answers)
    assert torch.equal(one.variance, other.variance)
    assert one.axes.keys() == other.axes.keys()
    assert all(torch.equal(one.axes[name], other.axes[name]) for name in other.axes)
    assert loaded.raters == trained.model.raters
    assert set(loaded.raters["r0"]) == {"judgements", "slope", "side_bias", "strictness", "honest", "flipped"}


def test_a_tie_is_neither_right_nor_wrong_in_an_evaluation(trained: TrainedReward) -> None:
    pairs = simulated_pairs(10, 1)
    tied = [msgspec.structs.replace(each, tie=True, chosen_side="left") for each in simulated_pairs(5, 2)]
    assert evaluate(trained.model, [], [*pairs, *tied]) == evaluate(trained.model, [], pairs)
