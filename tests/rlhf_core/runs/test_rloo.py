"""`attune rloo`, as a person types it: against a function, with GRPO's settings, and beside best-of-N."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_core.cli import main
from rlhf_core.models.load import load_policy


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """Named on the command line below."""
    return [float(response.count("e")) for response in responses]


def command(model: Path, directory: Path, out: str, *more: str) -> list[str]:
    data = directory / "prompts.jsonl"
    prompts = ("why is my order late", "is the router slow", "is the fox quick")
    data.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    name = f"{__name__}:reward" if __name__.startswith("tests.") else "tests.rlhf_core.runs.test_rloo:reward"
    fast = ["--rollouts", "16", "--minibatch-size", "8", "--max-new-tokens", "6", "--learning-rate", "1e-3"]
    return [
        "rloo", "--model", str(model), "--data", str(data), "--out", str(directory / out), "--reward", name,
        "--updates", "2", *fast, *more,
    ]  # fmt: skip


def metrics(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_function_is_climbed_and_best_of_n_stands_beside_it(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--best-of", "3")) == 0
    logged = metrics(tmp_path / "run")
    assert [each["step"] for each in logged] == [1, 2]
    assert logged[0]["policy/ratio_first_minibatch"] == 0.0
    said = capsys.readouterr().err
    assert "best of " in said
    assert f"score {logged[-1]['objective/shaped_score']:.3f}" in said
    load_policy(tmp_path / "run" / "model")


def test_grpo_is_a_choice_of_settings_that_single_options_override(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--grpo", "--group-size", "4", "--best-of", "0")) == 0
    settings = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    found = json.dumps(settings)
    assert '"baseline": "group_normalised"' in found
    assert '"group_size": 4' in found
    assert "best of" not in capsys.readouterr().err


def test_the_best_of_one_is_no_comparison(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--best-of", "1")) == 2
    assert "--best-of is 1: at least 2 answers" in capsys.readouterr().err
