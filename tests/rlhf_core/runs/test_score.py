"""`attune score`: every row comes back with its score, or none does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from rlhf_core.cli import main
from rlhf_core.learning.reward.files import save_reward
from rlhf_core.models.heads import RewardModel
from rlhf_core.models.load import load_policy
from rlhf_core.runs.model import copy_beside
from tests.rlhf_core.runs.files import write_jsonl

ROWS: list[dict[str, Any]] = [
    {"prompt": "hello", "completion": "hi", "label": True, "mine": {"kept": 1}},
    {"prompt": "hello", "completion": "go away now", "label": False},
    {"prompt": [{"role": "user", "content": "hello"}], "completion": "hi"},
]


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "my_reward_for_scores.py").write_text("def short(prompts, said):\n    return [-len(s) for s in said]\n")
    monkeypatch.syspath_prepend(tmp_path)
    return write_jsonl(tmp_path / "rows.jsonl", ROWS)


def score(data: Path, reward: str, out: Path, *more: str) -> int:
    return main(["score", "--data", str(data), "--reward", reward, "--out", str(out), *more])


def test_rows_come_back_whole_with_their_scores_and_a_summary(
    data: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert score(data, "my_reward_for_scores:short", tmp_path / "out.jsonl", "--model", str(tiny_model_dir)) == 0
    scored = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert scored == [{**row, "score": value} for row, value in zip(ROWS, (-2.0, -11.0, -2.0), strict=True)]
    said = capsys.readouterr().err
    # (-2 - 11 - 2) / 3 = -5; the deviations 3, -6, 3 have mean square 18.
    assert "scores: 3, mean -5.0000, standard deviation 4.2426" in said
    assert "labelled true: 1, mean -2.0000" in said


def test_a_reward_checkpoint_reads_texts_with_its_own_tokenizer(
    data: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    reward = tmp_path / "reward"
    reward.mkdir()
    copy_beside(tiny_model_dir, reward)
    save_reward(RewardModel(load_policy(tiny_model_dir).model.base_model), reward)
    assert score(data, str(reward), tmp_path / "out.jsonl") == 0
    first, second, third = (json.loads(line)["score"] for line in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first == pytest.approx(third, abs=1e-5)  # the same texts
    assert first != second


def test_an_output_that_exists_is_not_written_over(data: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    assert score(data, "my_reward_for_scores:short", tmp_path / "out.jsonl", "--model", str(tiny_model_dir)) == 1
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_after_a_bad_row_there_is_no_output(data: Path, tiny_model_dir: Path, tmp_path: Path) -> None:
    data.write_text(data.read_text() + '{"prompt": "hello"}\n')
    assert score(data, "my_reward_for_scores:short", tmp_path / "out.jsonl", "--model", str(tiny_model_dir)) == 1
    assert not list(tmp_path.glob("*out.jsonl*"))


def test_a_function_without_a_model_is_refused(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert score(data, "my_reward_for_scores:short", tmp_path / "out.jsonl") == 2
    assert "name the model with --model" in capsys.readouterr().err


def test_a_model_whose_settings_cannot_be_read_is_refused_with_a_sentence(
    data: Path, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(tiny_model_dir, broken)
    (broken / "generation_config.json").write_text("{")
    assert score(data, "my_reward_for_scores:short", tmp_path / "out.jsonl", "--model", str(broken)) == 1
    assert f"{broken} has no configuration that can be read" in capsys.readouterr().err
