"""`attune ppo`, as a person types it: against a function, in full and by LoRA, interrupted and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlhf_core.axes import AXES
from rlhf_core.cli import main
from rlhf_core.learning.conversations import SftExample
from rlhf_core.learning.reward.files import save_reward
from rlhf_core.learning.reward.training import load_trunk
from rlhf_core.models.adapted import load_adapter
from rlhf_core.models.heads import RewardModel
from rlhf_core.models.load import load_policy
from rlhf_core.runs.ppo import answers_in
from tests.rlhf_core.runs.files import VOWELS, metrics, write_prompts


def command(model: Path, directory: Path, out: str, *more: str) -> list[str]:
    fast = ["--rollouts", "16", "--minibatch-size", "8", "--max-new-tokens", "6", "--learning-rate", "1e-3"]
    free = ["--least-end-rate", "0", "--shortest", "0", "--kl-budget", "1e9"]
    where = ["--model", str(model), "--data", str(write_prompts(directory)), "--out", str(directory / out)]
    return [
        "ppo",
        *where,
        "--reward",
        VOWELS,
        "--updates",
        "2",
        *fast,
        *free,
        *more,
    ]


def test_a_function_is_climbed_beside_a_judge_demonstrations_and_best_of_n(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = tmp_path / "demonstrations.jsonl"
    turns = [{"role": "user", "content": "is it late"}, {"role": "assistant", "content": "no"}]
    shown.write_text(json.dumps({"messages": turns}) + "\n")
    beside = ["--demonstrations", str(shown), "--demonstration-coef", "0.1", "--served", str(tiny_model_dir)]
    assert main(command(tiny_model_dir, tmp_path, "run", "--best-of", "3", "--judge", VOWELS, *beside)) == 0
    logged = metrics(tmp_path / "run")
    assert [each["step"] for each in logged] == [1, 2]
    assert logged[0]["policy/ratio_first_minibatch"] == 0.0
    assert logged[0]["objective/kl_to_served"] == 0.0
    assert logged[1]["objective/kl_to_served"] == pytest.approx(logged[1]["objective/kl_seq"], abs=1e-6)
    assert logged[1]["objective/judge_score"] == pytest.approx(logged[1]["objective/score"], abs=1e-6)
    assert logged[1]["policy/demonstration_loss"] > 0.0
    assert "best of " in capsys.readouterr().err
    load_policy(tmp_path / "run" / "model")


def test_an_adapter_comes_out_of_lora(tiny_model_dir: Path, tmp_path: Path) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--lora", "--lora-rank", "2", "--best-of", "0")) == 0
    base = load_policy(tiny_model_dir)
    # 2 layers of 7 projections.
    assert len(load_adapter(tmp_path / "run" / "model", base.model).terms) == 14


def test_a_condition_that_stops_the_run_is_told(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--best-of", "0", "--kl-budget", "1e-9")) == 0
    assert "stopped early: " in capsys.readouterr().err
    assert metrics(tmp_path / "run")[-1]["stop/kl_budget"] == 1.0


def test_an_axis_needs_a_reward_that_has_learned_it(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--best-of", "0", "--floor-axis", "harmless")) != 0
    assert "harmless is scored by reward checkpoints only" in capsys.readouterr().err


def test_an_axis_of_a_reward_checkpoint_is_held_above_a_floor(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = RewardModel(load_trunk(tiny_model_dir), torch.Generator().manual_seed(0))
    model.axis_learned[AXES.index("harmless")] = True
    with torch.no_grad():
        model.axis_weight[AXES.index("harmless")].fill_(0.01)
    (tmp_path / "reward").mkdir()
    save_reward(model.eval(), tmp_path / "reward")
    started = command(tiny_model_dir, tmp_path, "run", "--best-of", "0", "--floor-axis", "harmless", "--floor", "9")
    started[started.index("--reward") + 1] = str(tmp_path / "reward")
    assert main(started) == 0
    first, second = metrics(tmp_path / "run")
    assert first["axis/multiplier"] == 0.0
    assert first["axis/violation"] == pytest.approx(9.0 - first["axis/harmless"])
    # The default rate: a tenth of the violation.
    assert second["axis/multiplier"] == pytest.approx(0.1 * first["axis/violation"])


def test_an_axis_that_the_reward_has_not_learned_is_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reward").mkdir()
    save_reward(RewardModel(load_trunk(tiny_model_dir)).eval(), tmp_path / "reward")
    started = command(tiny_model_dir, tmp_path, "run", "--best-of", "0", "--axis-weights", "honest=0.5")
    started[started.index("--reward") + 1] = str(tmp_path / "reward")
    assert main(started) != 0
    assert "has not learned the axis 'honest'; it knows no axis" in capsys.readouterr().err


def test_every_answer_of_a_conversation_is_a_demonstration() -> None:
    mask = (False, False, True, True, False, True)
    assert answers_in(SftExample((1, 2, 3, 4, 5, 6), mask)) == [((1, 2), (3, 4)), ((1, 2, 3, 4, 5), (6,))]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--lora-rank", "4"], "--lora-rank means something only with --lora"),
        (["--floor", "1"], "--floor and --floor-rate mean something only with --floor-axis"),
        (["--best-of", "1"], "--best-of is 1"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused(
    given: list[str], said: str, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", *given)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_run_that_climbs_something_else_is_not_compared_with_best_of_n(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--missing-end", "replace")) == 0
    said = capsys.readouterr().err
    assert "no comparison with best-of-N: --missing-end is replace" in said
    assert "best of 4" not in said
