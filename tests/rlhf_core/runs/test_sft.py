"""`attune sft` as its users meet it: files in, a model directory out, killed and resumed, on two processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlhf_core.cli import main
from rlhf_core.models.load import load_policy
from rlhf_core.models.lora import load_adapter, with_adapter
from tests.rlhf_core.runs.files import demonstration, demonstrations, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
# peft asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return demonstrations(tmp_path / "data.jsonl")


def arguments(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    small = ["--row-tokens", "64", "--rows-per-minibatch", "4", "--rows-per-microbatch", "2", "--learning-rate", "1e-3"]
    return ["sft", "--model", str(model), "--data", str(data), "--out", str(out), *small, *more]


def metrics(out: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    timed = {"tokens_per_s", "time/step"}
    return [{name: value for name, value in line.items() if name not in timed} for line in lines]


def test_the_result_is_a_transformers_directory_that_has_learned(
    tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(arguments(tiny_model_dir, data, out, "--epochs", "12")) == 0
    losses = [each["loss"] for each in metrics(out)]
    assert losses[-1] < losses[0] - 1.0
    model = AutoModelForCausalLM.from_pretrained(out / "model", local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(out / "model", local_files_only=True)
    assert tokenizer.chat_template
    kept = {path.name for path in tiny_model_dir.iterdir()}
    assert {path.name for path in (out / "model").iterdir()} == kept
    before = load_file(tiny_model_dir / "model.safetensors")
    assert not torch.equal(model.state_dict()["lm_head.weight"], before["lm_head.weight"])
    assert load_policy(out / "model").max_context == 256


def test_lora_leaves_pefts_files_which_peft_and_the_server_read_alike(
    tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert main(arguments(tiny_model_dir, data, out, "--lora", "--lora-rank", "2", "--epochs", "4")) == 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, local_files_only=True)
    theirs = peft.PeftModel.from_pretrained(base, out / "model").eval()
    policy = load_policy(tiny_model_dir)
    ours = with_adapter(policy.model, load_adapter(out / "model", policy.model))
    row = torch.tensor([[5, 9, 200, 40, 7]])
    torch.testing.assert_close(ours(row).logits, theirs(row).logits, atol=1e-4, rtol=0)
    assert (ours(row).logits - policy.model(row).logits).abs().max() > 1e-2


def test_an_adapter_can_be_trained_further_and_the_new_one_names_the_merged_weights(
    tiny_model_dir: Path, data: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert main(arguments(tiny_model_dir, data, first, "--lora", "--epochs", "2")) == 0
    assert main(arguments(first / "model", data, second, "--lora", "--epochs", "2")) == 0
    named = json.loads((second / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert Path(named) == (second / "base").resolve()
    merged = load_policy(second / "base")
    assert load_adapter(second / "model", merged.model).terms
    # The second run began where the first one ended.
    assert metrics(second)[0]["loss"] < metrics(first)[0]["loss"] - 0.05


def test_bfloat16_learns_the_same_to_its_precision(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    exact, halved = tmp_path / "exact", tmp_path / "halved"
    assert main(arguments(tiny_model_dir, data, exact)) == 0
    assert main(arguments(tiny_model_dir, data, halved, "--compute", "bfloat16")) == 0
    ours, theirs = metrics(exact)[0]["loss"], metrics(halved)[0]["loss"]
    assert theirs == pytest.approx(ours, rel=0.02)
    assert theirs != ours
    weights = load_file(halved / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_a_bad_row_ends_the_command_with_a_sentence_and_leaves_nothing(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [demonstration(), {"messages": 3}])
    assert main(arguments(tiny_model_dir, data, tmp_path / "run")) == 1
    assert "data.jsonl, line 2: messages is a number" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert main(arguments(tiny_model_dir, data, tmp_path / "run", "--skip-bad")) == 0
    assert "1 bad and skipped" in capsys.readouterr().err
    counts = json.loads((tmp_path / "run" / "run.json").read_text())["counts"]
    assert counts == {"rows": 2, "used": 1, "skipped": 1, "unapproved": 0}


def test_a_killed_run_resumes_to_the_bits_of_an_unbroken_one(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    more = ("--epochs", "40", "--keep-every", "5")
    child = subprocess.Popen(
        [sys.executable, "-m", "rlhf_core.cli", *arguments(tiny_model_dir, data, killed, *more)], cwd=ROOT
    )
    wait_for_lines(killed / "metrics.jsonl", 23)
    child.send_signal(signal.SIGKILL)
    child.wait()
    done = len(metrics_so_far(killed))
    assert main(arguments(tiny_model_dir, data, killed, *more, "--resume")) == 0
    assert main(arguments(tiny_model_dir, data, whole, *more)) == 0
    assert 23 <= done < len(metrics(whole))
    assert metrics(killed) == metrics(whole)
    left, right = (load_file(each / "model" / "model.safetensors") for each in (killed, whole))
    assert all(torch.equal(left[name], right[name]) for name in right)


def metrics_so_far(out: Path) -> list[str]:
    path = out / "metrics.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def wait_for_lines(path: Path, count: int) -> None:
    deadline = time.monotonic() + 90
    while len(metrics_so_far(path.parent)) < count:
        assert time.monotonic() < deadline, "the child does not train"
        time.sleep(0.02)


def test_two_processes_give_the_metrics_of_one(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert main(arguments(tiny_model_dir, data, one)) == 0
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", *launch, "-m", "rlhf_core.cli", *arguments(tiny_model_dir, data, two)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((two / "run.json").read_text())["processes"] == 2
    for ours, theirs in zip(metrics(one), metrics(two), strict=True):
        for name in ("step", "loss", "grad_norm", "learning_rate", "tokens"):
            assert theirs[name] == pytest.approx(ours[name], rel=1e-3), name
