"""The reward model on a tiny random trunk: it recovers known scores, ignores padding, and comes back from disk the same."""

import math
import random
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
import torch

from rlhf_core.checkpoints import seal, verify
from rlhf_core.errors import ModelError, TrainingError
from rlhf_core.learning.reward_evaluation import pad_right
from rlhf_core.learning.reward_model import (
    RewardSettings,
    TrainedReward,
    evaluate,
    load_reward,
    preference_loss,
    save_reward,
    score,
    train_reward_model,
)
from rlhf_core.records import PreferencePair, RatedResponse

SETTINGS = RewardSettings(learning_rate=3e-3, head_learning_rate=1e-2, epochs=6, least_steps=0, label_smoothing=0.0)
QUICK = msgspec.structs.replace(SETTINGS, epochs=1)
WORTH = {10 + at: -1.5 + at * 3.0 / 7 for at in range(8)}
"""A response of the simulated people is worth the sum of its tokens' worth, tokens 10 to 17."""


def worth(token_ids: Sequence[int]) -> float:
    return sum(WORTH.get(token, 0.0) for token in token_ids)


def drawn(rng: random.Random) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """A prompt of 2 to 4 tokens that do not matter, and a response of 1 to 3 that do, with the end token."""
    prompt = tuple(rng.randrange(100, 200) for _ in range(rng.randint(2, 4)))
    return prompt, (*rng.choices(sorted(WORTH), k=rng.randint(1, 3)), 1)


def likely(logit: float, rng: random.Random) -> bool:
    return rng.random() < 1 / (1 + math.exp(-logit))


def simulated_pairs(count: int, seed: int) -> list[PreferencePair]:
    """Choices of people who follow Bradley and Terry exactly."""
    rng = random.Random(seed)
    pairs = []
    for at in range(count):
        (prompt, left), (_, right) = drawn(rng), drawn(rng)
        prefers_left = likely(worth(left) - worth(right), rng)
        pairs.append(
            PreferencePair(
                event_id=f"p{at}",
                rater="r",
                comparison_id=f"c{at}",
                policy_version=1,
                prompt_token_ids=prompt,
                chosen_token_ids=left if prefers_left else right,
                rejected_token_ids=right if prefers_left else left,
                chosen_side="left" if prefers_left else "right",
                prompt_key=f"k{at}",
            )
        )
    return pairs


def simulated_thumbs(count: int, seed: int, *, slope: float = 2.0, threshold: float = 0.5) -> list[RatedResponse]:
    rng = random.Random(seed)
    thumbs = []
    for at in range(count):
        prompt, response = drawn(rng)
        up = likely(slope * worth(response) - threshold, rng)
        thumbs.append(
            RatedResponse(
                event_id=f"r{at}",
                rater="r",
                interaction_id=f"i{at}",
                policy_version=1,
                prompt_token_ids=prompt,
                token_ids=response,
                value="up" if up else "down",
                prompt_key=f"k{at}",
            )
        )
    return thumbs


def correlation(trained: TrainedReward, seed: int) -> float:
    """Of scores and true worth, on responses that were never judged."""
    rng = random.Random(seed)
    answers = [drawn(rng) for _ in range(300)]
    true = torch.tensor([worth(response) for _, response in answers])
    return float(torch.corrcoef(torch.stack([score(trained.model, answers), true]))[0, 1])


@pytest.fixture(scope="module")
def quick(tiny_model_dir: Path) -> TrainedReward:
    """A short fit to few judgements, for what does not depend on quality."""
    return train_reward_model(tiny_model_dir, simulated_thumbs(60, 1), simulated_pairs(40, 2), QUICK, seed=3)


def test_it_recovers_the_scores_behind_pairs(tiny_model_dir: Path) -> None:
    trained = train_reward_model(tiny_model_dir, [], simulated_pairs(700, 1), SETTINGS, seed=0)
    assert correlation(trained, 99) > 0.95


def test_it_recovers_the_scores_behind_thumbs(tiny_model_dir: Path) -> None:
    trained = train_reward_model(tiny_model_dir, simulated_thumbs(900, 1), [], SETTINGS, seed=0)
    assert correlation(trained, 99) > 0.95


def test_pairs_and_thumbs_teach_one_head_and_the_slope_of_thumbs_is_learned(tiny_model_dir: Path) -> None:
    """The same people with weak thumbs and with strong ones: the strong ones get a steeper slope against the pairs."""
    pairs = simulated_pairs(400, 1)
    weak, strong = (
        train_reward_model(tiny_model_dir, simulated_thumbs(400, 2, slope=slope), pairs, SETTINGS, seed=0)
        for slope in (0.3, 3.0)
    )
    assert correlation(weak, 99) > 0.9 and correlation(strong, 99) > 0.95
    assert strong.metrics["alpha"] > 2 * weak.metrics["alpha"]


def test_scores_of_the_reference_answers_have_mean_zero_and_spread_one(tiny_model_dir: Path) -> None:
    rng = random.Random(8)
    answers = [drawn(rng) for _ in range(50)]
    trained = train_reward_model(
        tiny_model_dir, simulated_thumbs(60, 1), [], QUICK, seed=3, reference_answers=answers
    )
    scores = score(trained.model, answers)
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)


def test_without_reference_answers_the_judged_ones_are_the_reference(quick: TrainedReward) -> None:
    answers = [(each.prompt_token_ids, each.token_ids) for each in simulated_thumbs(60, 1)]
    for each in simulated_pairs(40, 2):
        answers += [(each.prompt_token_ids, each.chosen_token_ids), (each.prompt_token_ids, each.rejected_token_ids)]
    scores = score(quick.model, answers)
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)


def test_changing_the_unit_of_scores_changes_no_probability(quick: TrainedReward, tmp_path: Path) -> None:
    save_reward(quick.model, tmp_path)
    model = load_reward(tmp_path)
    answers = [((100, 101), (at, 1)) for at in WORTH]
    before = score(model, answers)
    with torch.no_grad():
        approval = model.approval(before)
        model.normalise(mean=0.7, std=2.5)
        after = score(model, answers)
        assert torch.allclose(after, (before - 0.7) / 2.5, atol=1e-6)
        assert torch.allclose(model.approval(after), approval, atol=1e-6)


def test_padding_changes_no_score(quick: TrainedReward) -> None:
    rows = [[100, 101, 10, 1], [100, 11], [100, 101, 102, 103, 12, 13, 14, 1]]
    with torch.inference_mode():
        together = quick.model(*pad_right(rows, torch.device("cpu")))
        alone = torch.cat([quick.model(*pad_right([row], torch.device("cpu"))) for row in rows])
        input_ids, lengths = pad_right(rows, torch.device("cpu"))
        input_ids[torch.arange(8)[None, :] >= lengths[:, None]] = 7
        padded_otherwise = quick.model(input_ids, lengths)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(together, padded_otherwise)


def test_the_end_token_is_part_of_what_is_scored(quick: TrainedReward) -> None:
    ended, cut = score(quick.model, [((100, 101), (12, 1)), ((100, 101), (12,))])
    assert abs(float(ended - cut)) > 1e-3


def test_scores_come_in_the_order_of_the_answers(quick: TrainedReward) -> None:
    answers = [((100,) * (1 + at * 7 % 5), (10 + at % 8, 1)) for at in range(40)]
    backwards = score(quick.model, answers[::-1]).flip(0)
    assert torch.allclose(score(quick.model, answers), backwards, atol=1e-5)


def test_an_empty_answer_to_an_empty_prompt_is_refused(quick: TrainedReward) -> None:
    with pytest.raises(ValueError, match="last token"):
        score(quick.model, [((), ())])


def test_scoring_nothing_gives_no_scores(quick: TrainedReward) -> None:
    assert score(quick.model, []).shape == (0,)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny_model_dir: Path, quick: TrainedReward) -> None:
    again, other = (
        train_reward_model(tiny_model_dir, simulated_thumbs(60, 1), simulated_pairs(40, 2), QUICK, seed=seed)
        for seed in (3, 4)
    )
    weights, other_weights = quick.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.model.state_dict().items())
    assert not torch.equal(weights["head.weight"], other_weights["head.weight"])
    assert again.metrics == quick.metrics


def test_a_saved_model_scores_the_same_to_the_last_bit(quick: TrainedReward, tmp_path: Path) -> None:
    manifest = seal(
        tmp_path, lambda directory: save_reward(quick.model, directory), _manifest_fields("reward-0123456789ab")
    )
    directory = tmp_path / manifest.checkpoint_id
    verify(directory)
    loaded = load_reward(directory)
    answers = [((100, 101, 102), (10 + at % 8, 11, 1)) for at in range(20)]
    assert torch.equal(score(loaded, answers), score(quick.model, answers))
    assert loaded.baselines == quick.model.baselines
    assert loaded.fit_settings == quick.model.fit_settings
    thumbs, pairs = simulated_thumbs(30, 7), simulated_pairs(30, 8)
    assert evaluate(loaded, thumbs, pairs) == evaluate(quick.model, thumbs, pairs)


def _manifest_fields(checkpoint_id: str) -> dict[str, object]:
    return {"checkpoint_id": checkpoint_id, "kind": "reward", "created_at": 1.0}


def test_a_saved_model_is_safetensors_and_json_and_nothing_else(quick: TrainedReward, tmp_path: Path) -> None:
    save_reward(quick.model, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors", "reward.json"]


@pytest.mark.parametrize("missing", ["reward.json", "model.safetensors", "config.json"])
def test_a_directory_without_one_of_the_files_is_refused(quick: TrainedReward, tmp_path: Path, missing: str) -> None:
    save_reward(quick.model, tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(ModelError, match="reward model"):
        load_reward(tmp_path)


def test_weights_of_another_shape_are_refused(quick: TrainedReward, tmp_path: Path) -> None:
    save_reward(quick.model, tmp_path)
    config = msgspec.json.decode((tmp_path / "config.json").read_bytes())
    (tmp_path / "config.json").write_bytes(msgspec.json.encode(config | {"num_hidden_layers": 3}))
    with pytest.raises(ModelError, match="reward model"):
        load_reward(tmp_path)


def test_a_reward_model_cannot_start_from_a_directory_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="start from"):
        train_reward_model(tmp_path, simulated_thumbs(20, 1), [], QUICK, seed=0)


def test_judgements_without_a_difference_teach_nothing(tiny_model_dir: Path) -> None:
    liked = [each for each in simulated_thumbs(60, 1) if each.value == "up"]
    with pytest.raises(TrainingError, match=f"all {len(liked)} thumbs are up"):
        train_reward_model(tiny_model_dir, liked, [], QUICK, seed=0)
    with pytest.raises(TrainingError, match="no judgements"):
        train_reward_model(tiny_model_dir, [], [], QUICK, seed=0)


def test_a_loss_that_is_not_finite_stops_the_fit(tiny_model_dir: Path) -> None:
    wild = msgspec.structs.replace(QUICK, learning_rate=1e30, head_learning_rate=1e30, warmup_share=0.0)
    with pytest.raises((TrainingError, RuntimeError), match=r"loss|non-finite"):
        train_reward_model(tiny_model_dir, simulated_thumbs(64, 1), [], wild, seed=0)


def test_few_judgements_are_passed_over_more_often(tiny_model_dir: Path) -> None:
    # 20 thumbs in batches of 8 are 3 steps an epoch; 10 steps at least are 4 epochs of 3.
    settings = msgspec.structs.replace(QUICK, batch_size=8, least_steps=10)
    told: list[tuple[str, float]] = []
    trained = train_reward_model(
        tiny_model_dir, simulated_thumbs(20, 1), [], settings, 0, lambda stage, share: told.append((stage, share))
    )
    assert trained.metrics["steps"] == 12
    assert told[-1] == ("reward model", 1.0)
    assert [share for _, share in told] == pytest.approx([(step + 1) / 12 for step in range(12)])


def test_the_loss_of_a_batch_weighs_pairs_and_thumbs_by_their_number(quick: TrainedReward) -> None:
    thumbs, pairs = simulated_thumbs(3, 5), simulated_pairs(2, 6)
    settings = msgspec.structs.replace(QUICK, thumbs_weight=0.5, centering=0.0)
    model = quick.model
    with torch.no_grad():
        prior = float(model.log_alpha) ** 2 / 2 / 100
        whole = float(preference_loss(model, [*thumbs, *pairs], settings, total=100)) - prior
        only_thumbs = float(preference_loss(model, thumbs, settings, total=100)) - prior
        only_pairs = float(preference_loss(model, pairs, settings, total=100)) - prior
    # 3 thumbs of weight 1/2 and 2 pairs of weight 1: (1.5 thumbs + 2 pairs) / 3.5
    assert whole == pytest.approx((1.5 * only_thumbs + 2 * only_pairs) / 3.5, abs=1e-5)


def test_an_evaluation_counts_what_it_says(quick: TrainedReward) -> None:
    """Held-out judgements are built from the scores, so the number of hits is known: 3 of 4 thumbs, 1 of 2 pairs."""
    model = quick.model
    rng = random.Random(4)
    answers = sorted((drawn(rng) for _ in range(40)), key=lambda each: float(score(model, [each])))
    low, high = answers[0], answers[-1]
    with torch.no_grad():
        assert model.approval(score(model, [low])) < 0.5 < model.approval(score(model, [high]))
    template = simulated_thumbs(1, 1)[0]
    values = [(high, "up"), (high, "up"), (low, "down"), (low, "up")]
    thumbs = [
        msgspec.structs.replace(template, prompt_token_ids=prompt, token_ids=response, value=value)
        for (prompt, response), value in values
    ]
    pair = msgspec.structs.replace(
        simulated_pairs(1, 1)[0], prompt_token_ids=high[0], chosen_token_ids=high[1], rejected_token_ids=(10, 10, 10, 1)
    )
    better = float(score(model, [high])) > float(score(model, [(high[0], (10, 10, 10, 1))]))
    assert better
    swapped = msgspec.structs.replace(
        pair, chosen_token_ids=pair.rejected_token_ids, rejected_token_ids=pair.chosen_token_ids
    )
    seen = evaluate(model, thumbs, [pair, swapped])
    assert (seen.ratings_accuracy, seen.n_ratings, seen.pairs_accuracy, seen.n_pairs) == (0.75, 4, 0.5, 2)
    assert (seen.accuracy, seen.n) == (pytest.approx(4 / 6), 6)
    assert 0.0 < seen.low < seen.accuracy < seen.high < 1.0


def test_an_evaluation_without_judgements_knows_nothing(quick: TrainedReward) -> None:
    seen = evaluate(quick.model, [], [])
    assert (seen.n, seen.accuracy, seen.low, seen.high, seen.length_correlation) == (0, 0.0, 0.0, 1.0, 0.0)
    assert all(math.isfinite(value) for value in seen.as_metrics().values())
