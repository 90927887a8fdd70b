"""`attune reward`, as a person types it: files of pairs and thumbs in, a reward checkpoint and its report out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from rlhf_core.cli import main
from rlhf_core.learning.reward.evaluation import score, score_axes
from rlhf_core.learning.reward.files import load_reward
from rlhf_core.models.load import render_prompt
from rlhf_core.records import Message
from tests.rlhf_core.runs.files import write_jsonl

GOOD, BAD = "it waits again", "no no no"
FAST = ["--reference-samples", "8", "--reference-tokens", "6", "--epochs", "1", "--learning-rate", "1e-3"]


def rows(count: int = 60) -> list[dict[str, Any]]:
    """Pairs, ties and thumbs on prompts of their own, by raters who like one answer and say why."""
    made: list[dict[str, Any]] = []
    for at in range(count):
        who = {"prompt": f"is order {at} late", "rater": f"r{at % 15}"}
        made.append({**who, "chosen": GOOD, "rejected": BAD, "side": "right" if at % 2 else "left"})
        reasons = ["helpful"] if at % 2 else ["unhelpful"]
        made.append({**who, "completion": GOOD if at % 2 else BAD, "label": bool(at % 2), "reasons": reasons})
        if at % 6 == 0:
            made.append({**who, "chosen": GOOD, "rejected": f"{GOOD} now", "tie": True})
    return made


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "judgements.jsonl", rows())


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["reward", "--model", str(model), "--data", str(data), "--out", str(out), *FAST, *more]


def test_judgements_make_a_reward_model_and_a_report_with_every_baseline(
    tiny_model_dir: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    assert main(command(tiny_model_dir, data, out)) == 0
    model = load_reward(out / "model")
    tokenizer = AutoTokenizer.from_pretrained(out / "model")  # beside it, with its template, for `attune score`
    prompt = render_prompt(tokenizer, [Message("user", "is order 999 late")])
    good, bad = score(model, [(prompt, tokenizer.encode(each)) for each in (GOOD, BAD)]).tolist()
    assert good > bad + 0.5
    assert model.learned_axes == ("helpful",)
    assert set(score_axes(model, [(prompt, [5])])) == {"helpful"}
    report = json.loads((out / "model" / "report.json").read_text())
    assert report["split"].startswith("held out by prompt and by rater")
    assert report["model"]["choices"]["value"] == 1.0
    names = [each["name"] for each in report["baselines"]]
    assert names == ["coin", "always_left", "longer", "shorter", "words", "reference_logprob"]
    printed = capsys.readouterr().out
    assert "reward model" in printed
    assert "it does not beat words" in printed  # one word decides here, so a bag of words is as good
    logged = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [each["step"] for each in logged] == [float(at) for at in range(1, len(logged) + 1)]
    assert logged[0]["eta"] > 0.0


def test_lora_leaves_one_whole_reward_model(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(command(tiny_model_dir, data, out, "--lora", "--lora-rank", "2", "--held-out", "0")) == 0
    tensors = load_file(out / "model" / "model.safetensors")
    assert not [name for name in tensors if "lora" in name]
    assert load_reward(out / "model").fit_settings["learning_rate"] == 1e-3
    report = json.loads((out / "model" / "report.json").read_text())
    assert report["said"][0] == "nothing was held out, so nothing is known of this reward model"


def test_reports_and_reviews_teach_their_axis_but_not_those_of_held_out_prompts(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    answers = [{"prompt": f"is order {at} late", "completion": BAD if at % 2 else GOOD} for at in range(60)]
    remarks = [{**each, "reasons": ["toxic"] if each["completion"] == BAD else ["toxicity:ok"]} for each in answers]
    data = write_jsonl(tmp_path / "judged.jsonl", rows() + remarks)
    learned = {}
    for held in ("0", "0.3"):
        assert main(command(tiny_model_dir, data, tmp_path / held, "--held-out", held)) == 0
        report = json.loads((tmp_path / held / "model" / "report.json").read_text())
        learned[held] = {each["axis"]: each for each in report["axes"]}["harmless"]
    assert "harmless" in load_reward(tmp_path / "0" / "model").learned_axes
    assert learned["0"]["n"] == 60
    assert 30 <= learned["0.3"]["n"] < 60


def test_an_earlier_reward_model_is_one_more_baseline(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(command(tiny_model_dir, data, first, "--ensemble", "0")) == 0
    again = ("--ensemble", "0", "--previous", str(first / "model"))
    assert main(command(tiny_model_dir, data, second, *again)) == 0
    report = json.loads((second / "model" / "report.json").read_text())
    assert report["baselines"][-1]["name"] == "previous_model"
    assert report["baselines"][-1]["choices"]["value"] == report["model"]["choices"]["value"]
    ours, theirs = (load_file(each / "model" / "model.safetensors") for each in (first, second))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_judgements_that_all_agree_are_refused_in_a_sentence(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    liked = [{"prompt": f"order {at}", "completion": GOOD, "label": True} for at in range(8)]
    data = write_jsonl(tmp_path / "liked.jsonl", liked)
    assert main(command(tiny_model_dir, data, tmp_path / "run", "--held-out", "0")) == 1
    assert "all 8 thumbs are up" in capsys.readouterr().err
    assert not (tmp_path / "run" / "model").exists()


def test_a_share_that_is_none_is_refused(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(command(tiny_model_dir, data, tmp_path / "run", "--held-out", "1.5"))
