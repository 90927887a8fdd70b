"""The reward model on a tiny random trunk: it recovers known scores, ignores padding, and comes back from
disk the same.
"""

import math
import random
from pathlib import Path

import msgspec
import pytest
import torch

from rlhf_core.checkpoints import seal, verify
from rlhf_core.errors import ModelError, TrainingError
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.reward.training import (
    RewardSettings,
    TrainedReward,
    evaluate,
    load_reward,
    load_trunk,
    save_reward,
    score,
    train_reward_model,
)
from rlhf_core.models.heads import AnswerBatch
from tests.rlhf_core.learning.reward.simulated_people import (
    WORTH,
    drawn,
    make_trunk,
    simulated_pairs,
    simulated_thumbs,
    worth,
)

HEAD_ONLY = RewardSettings(epochs=0, ridge=0.3, ensemble=0)
QUICK = RewardSettings(epochs=1, learning_rate=1e-3, head_learning_rate=1e-3, batch_size=32, ensemble=2)


def correlation(trained: TrainedReward, seed: int, *, prompts: int = 300) -> float:
    """Of scores and true worth on 300 responses that were never judged, to so many prompts."""
    rng = random.Random(seed)
    asked = [drawn(rng)[0] for _ in range(prompts)]
    answers = [(asked[at % prompts], drawn(rng)[1]) for at in range(300)]
    true = torch.tensor([worth(response) for _, response in answers])
    return float(torch.corrcoef(torch.stack([score(trained.model, answers), true]))[0, 1])


@pytest.fixture(scope="module")
def trunk_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_trunk(tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def quick(trunk_dir: Path) -> TrainedReward:
    """A short fit to few judgements, for what does not depend on quality."""
    return train_reward_model(trunk_dir, simulated_thumbs(60, 1), simulated_pairs(40, 2), QUICK, seed=3)


def test_it_recovers_the_scores_behind_pairs_for_any_one_prompt(trunk_dir: Path) -> None:
    """Pairs compare answers to the same prompt, so they say nothing of levels between prompts."""
    trained = train_reward_model(trunk_dir, [], simulated_pairs(1500, 1), HEAD_ONLY, seed=0)
    assert all(correlation(trained, seed, prompts=1) > 0.95 for seed in range(5))


def test_it_recovers_the_scores_behind_thumbs(trunk_dir: Path) -> None:
    trained = train_reward_model(trunk_dir, simulated_thumbs(1500, 1), [], HEAD_ONLY, seed=0)
    assert correlation(trained, 99) > 0.95


def test_a_trunk_that_learns_recovers_them_too(trunk_dir: Path) -> None:
    settings = msgspec.structs.replace(HEAD_ONLY, epochs=3, learning_rate=1e-3, head_learning_rate=3e-3, batch_size=64)
    trained = train_reward_model(trunk_dir, simulated_thumbs(600, 2), simulated_pairs(600, 1), settings, seed=0)
    assert correlation(trained, 99) > 0.95
    before = load_trunk(trunk_dir).state_dict()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in trained.model.trunk.state_dict().items())


def test_without_epochs_the_trunk_is_the_policy_s(trunk_dir: Path) -> None:
    trained = train_reward_model(trunk_dir, simulated_thumbs(60, 1), [], HEAD_ONLY, seed=0)
    before = load_trunk(trunk_dir).state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.trunk.state_dict().items())


def test_the_slope_of_thumbs_is_learned_beside_pairs(trunk_dir: Path) -> None:
    """The same people with weak thumbs and with strong ones: neither spoils the scores, the slopes differ."""
    pairs = simulated_pairs(800, 1)
    weak, strong = (
        train_reward_model(trunk_dir, simulated_thumbs(800, 2, slope=slope), pairs, HEAD_ONLY, seed=0)
        for slope in (0.3, 3.0)
    )
    assert correlation(weak, 99) > 0.85
    assert correlation(strong, 99) > 0.95
    assert strong.metrics["alpha"] > 3 * weak.metrics["alpha"]


def test_scores_of_the_reference_answers_have_mean_zero_and_spread_one(trunk_dir: Path) -> None:
    rng = random.Random(8)
    answers = [drawn(rng) for _ in range(50)]
    trained = train_reward_model(trunk_dir, simulated_thumbs(60, 1), [], QUICK, seed=3, reference_answers=answers)
    scores = score(trained.model, answers)
    assert float(scores.mean()) == pytest.approx(0.0, abs=1e-5)
    assert float(scores.std(unbiased=False)) == pytest.approx(1.0, abs=1e-5)


def test_without_reference_answers_the_judged_ones_are_the_reference(quick: TrainedReward) -> None:
    answers = [(each.prompt_token_ids, each.token_ids) for each in simulated_thumbs(60, 1)]
    for each in simulated_pairs(40, 2):
        answers += [
            (each.prompt_token_ids, each.chosen_token_ids),
            (each.prompt_token_ids, each.rejected_token_ids),
        ]
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


def test_other_answers_beside_it_change_no_score(quick: TrainedReward) -> None:
    answers = [((100, 101), (10, 1)), ((100,), (11,)), ((100, 101, 102, 103), (12, 13, 14, 1))]
    cpu = torch.device("cpu")
    with torch.no_grad():
        batch = AnswerBatch.of(answers, cpu)
        together = quick.model(batch)
        alone = torch.cat([quick.model(AnswerBatch.of([each], cpu)) for each in answers])
    assert torch.allclose(together, alone, atol=1e-5)


def test_the_head_reads_the_mean_over_the_response_and_the_last_token(quick: TrainedReward) -> None:
    batch = AnswerBatch.of([((100, 101), (10, 11, 1)), ((100,), (12,))], torch.device("cpu"))
    with torch.no_grad():
        read = quick.model.features(batch)
        hidden = quick.model.trunk(input_ids=torch.tensor([[100, 101, 10, 11, 1]])).last_hidden_state[0]
        short = quick.model.trunk(input_ids=torch.tensor([[100, 12]])).last_hidden_state[0]
    # Tokens 2, 3 and 4 of the first row are its response, token 1 of the second.
    assert torch.allclose(read[0], torch.cat([(hidden[2] + hidden[3] + hidden[4]) / 3, hidden[4]]), atol=1e-5)
    assert torch.allclose(read[1], torch.cat([short[1], short[1]]), atol=1e-5)


def test_the_end_token_is_part_of_what_is_scored(quick: TrainedReward) -> None:
    ended, cut = score(quick.model, [((100, 101), (12, 1)), ((100, 101), (12,))])
    assert abs(float(ended - cut)) > 1e-3


def test_scores_come_in_the_order_of_the_answers(quick: TrainedReward) -> None:
    answers = [((100,) * (1 + at * 7 % 5), (10 + at % 8, 1)) for at in range(40)]
    backwards = score(quick.model, answers[::-1]).flip(0)
    assert torch.allclose(score(quick.model, answers), backwards, atol=1e-5)


@pytest.mark.parametrize("empty", [((), (1,)), ((1,), ())])
def test_an_empty_prompt_or_response_is_refused(
    quick: TrainedReward, empty: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match="empty prompt or response"):
        score(quick.model, [empty])


def test_scoring_nothing_gives_no_scores(quick: TrainedReward) -> None:
    assert score(quick.model, []).shape == (0,)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(trunk_dir: Path, quick: TrainedReward) -> None:
    again, other = (
        train_reward_model(trunk_dir, simulated_thumbs(60, 1), simulated_pairs(40, 2), QUICK, seed=seed)
        for seed in (3, 4)
    )
    weights, other_weights = quick.model.state_dict(), other.model.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in again.model.state_dict().items())
    assert any(not torch.equal(tensor, weights[name]) for name, tensor in other_weights.items())
    assert again.metrics == quick.metrics


def test_a_saved_model_scores_the_same_to_the_last_bit(quick: TrainedReward, tmp_path: Path) -> None:
    manifest = seal(
        tmp_path,
        lambda directory: save_reward(quick.model, directory),
        _manifest_fields("reward-0123456789ab"),
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
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "reward.json",
    ]


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


def test_judgements_without_a_difference_teach_nothing(trunk_dir: Path) -> None:
    liked = [each for each in simulated_thumbs(60, 1) if each.value == "up"]
    with pytest.raises(TrainingError, match=f"all {len(liked)} thumbs are up"):
        train_reward_model(trunk_dir, liked, [], QUICK, seed=0)
    with pytest.raises(TrainingError, match="no judgements"):
        train_reward_model(trunk_dir, [], [], QUICK, seed=0)


def test_a_loss_that_is_not_finite_stops_the_fit(trunk_dir: Path) -> None:
    wild = msgspec.structs.replace(QUICK, learning_rate=1e30, head_learning_rate=1e30, warmup_share=0.0)
    with pytest.raises(TrainingError, match="step 2: loss"):
        train_reward_model(trunk_dir, simulated_thumbs(64, 1), [], wild, seed=0)


def test_the_number_of_steps_follows_from_epochs_and_batches_and_progress_is_told(trunk_dir: Path) -> None:
    # 20 thumbs in batches of 8 are 3 steps an epoch.
    settings = msgspec.structs.replace(QUICK, batch_size=8, epochs=4)
    told: list[tuple[str, float]] = []
    hooks = Hooks(progress=lambda stage, share: told.append((stage, share)))
    trained = train_reward_model(trunk_dir, simulated_thumbs(20, 1), [], settings, 0, hooks)
    assert trained.metrics["steps"] == 12
    assert told[-1] == ("reward model", 1.0)
    assert [share for _, share in told] == pytest.approx([(step + 1) / 12 for step in range(12)])


def test_an_evaluation_counts_what_it_says(quick: TrainedReward) -> None:
    """Held-out judgements are built from the scores, so the number of hits is known: 3 of 4 thumbs, 1 of 2
    pairs.
    """
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
        simulated_pairs(1, 1)[0],
        prompt_token_ids=high[0],
        chosen_token_ids=high[1],
        rejected_token_ids=low[1],
    )
    better = float(score(model, [high])) > float(score(model, [(high[0], low[1])]))
    assert better
    swapped = msgspec.structs.replace(
        pair, chosen_token_ids=pair.rejected_token_ids, rejected_token_ids=pair.chosen_token_ids
    )
    seen = evaluate(model, thumbs, [pair, swapped])
    assert (seen.ratings_accuracy, seen.n_ratings, seen.pairs_accuracy, seen.n_pairs) == (0.75, 4, 0.5, 2)
    assert seen.accuracy == pytest.approx(4 / 6)
    assert seen.n == 6
    assert 0.0 < seen.low < seen.accuracy < seen.high < 1.0


def test_an_evaluation_without_judgements_knows_nothing(quick: TrainedReward) -> None:
    seen = evaluate(quick.model, [], [])
    assert (seen.n, seen.accuracy, seen.low, seen.high, seen.length_correlation) == (0, 0.0, 0.0, 1.0, 0.0)
    assert all(math.isfinite(value) for value in seen.as_metrics().values())
