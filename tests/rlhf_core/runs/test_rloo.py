"""`attune rloo`, as a person types it: against a function, with GRPO's settings, and beside best-of-N."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from rlhf_core.cli import main
from rlhf_core.models.load import load_policy
from rlhf_core.runs.journal import Journal
from tests.rlhf_core.runs.files import VOWELS, metrics, write_prompts


def command(model: Path, directory: Path, out: str, *more: str) -> list[str]:
    fast = ["--rollouts", "16", "--minibatch-size", "8", "--max-new-tokens", "6", "--learning-rate", "1e-3"]
    where = ["--model", str(model), "--data", str(write_prompts(directory)), "--out", str(directory / out)]
    return [
        "rloo",
        *where,
        "--reward",
        VOWELS,
        "--updates",
        "2",
        *fast,
        *more,
    ]


def test_a_function_is_climbed_and_best_of_n_stands_beside_it(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, tmp_path, "run", "--best-of", "3")) == 0
    logged = metrics(tmp_path / "run")
    assert [each["step"] for each in logged] == [1, 2]
    assert logged[0]["policy/ratio_first_minibatch"] == 0.0
    said = capsys.readouterr().err
    assert "best of " in said
    assert "score " in said
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


def test_a_resumed_run_reads_what_best_of_n_reached_instead_of_sampling_again(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # No --keep-every: a state is kept after every round of sampling.
    given = command(tiny_model_dir, tmp_path, "run", "--best-of", "2")
    stop_after_the_first_update(monkeypatch)
    assert main(given) == 130
    kept = tmp_path / "run" / "best_of_n.json"
    assert [row[0] for row in json.loads(kept.read_text())] == [1, 2]
    kept.write_text(json.dumps([[1, 77.0, 0.0], [2, 77.0, 0.193]]))
    capsys.readouterr()
    assert main([*given, "--resume"]) == 0
    said = capsys.readouterr().err
    assert "going on after update 1" in said
    assert ": 77.000" in said


def stop_after_the_first_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C does it, once."""
    say, told = Journal.log, []

    def log(self: Journal, metrics: Any) -> None:
        say(self, metrics)
        if not told:
            told.append(metrics)
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Journal, "log", log)
