"""`attune kto`, as a person types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlhf_core.cli import main
from rlhf_core.models.load import load_policy

ROWS = [
    {"prompt": "why is my order late", "completion": "it waits", "label": True},
    {"prompt": "is the router slow", "completion": "no", "label": False},
    {"prompt": "is the fox quick", "completion": "the fox jumps", "label": True},
    {"prompt": "my order waits", "completion": "no no no", "label": False},
]


def command(model: Path, rows: list[dict[str, object]], directory: Path, *more: str) -> list[str]:
    data = directory / "thumbs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = str(directory / "run")
    return ["kto", "--model", str(model), "--data", str(data), "--out", out, "--learning-rate", "1e-3", *more]


def test_thumbs_make_a_policy_that_can_be_served(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"prompt": "is it late", "chosen": "it waits", "rejected": "no"}
    assert main(command(tiny_model_dir, [*ROWS, pair], tmp_path, "--epochs", "4", "--minibatch-size", "4")) == 0
    assert "1 pairs are left out" in capsys.readouterr().err
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(logged) == 4
    assert (logged[0]["preference/ups"], logged[0]["preference/downs"]) == (2, 2)
    assert logged[-1]["preference/margin"] > logged[0]["preference/margin"]
    load_policy(tmp_path / "run" / "model")


def test_thumbs_of_one_kind_are_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, ROWS[::2], tmp_path)) == 1
    assert "all 2 are up" in capsys.readouterr().err
