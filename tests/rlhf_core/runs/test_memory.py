"""The estimate of memory, against what a real run takes."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from rlhf_core.cli import main
from rlhf_core.runs.estimate import read_command
from rlhf_core.runs.memory import MemoryNeed, estimate_memory
from tests.rlhf_core.runs.files import demonstrations, write_jsonl

ROOT = Path(__file__).resolve().parents[3]
PARAMETERS = 8192 * 256 * 2 + 6 * (256 * 256 * 4 + 256 * 704 * 3 + 2 * 256) + 256
"""Of the model below: two embeddings, and of every layer four projections, three of the MLP and two norms."""
MEASURE = """
import sys
from rlhf_core.cli import main
from rlhf_core.models.allocation import peak_of_process
status = main(sys.argv[1:])
print(peak_of_process())
sys.exit(status)
"""


def estimate(given: list[str]) -> MemoryNeed:
    return estimate_of("sft", given)


def estimate_of(command: str, given: list[str]) -> MemoryNeed:
    options, settings = read_command(command, given)
    return estimate_memory(command, options, settings, model=Path(options.model))


@pytest.fixture(scope="module")
def model(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """9.6 million parameters, so that the model weighs against the program."""
    directory = tmp_path_factory.mktemp("larger") / "model"
    shutil.copytree(tiny_model_dir, directory)
    config = LlamaConfig(
        vocab_size=8192,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=4,
        intermediate_size=704,
        max_position_embeddings=512,
        eos_token_id=1,
        bos_token_id=None,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    return directory


def test_the_estimate_is_within_a_factor_of_one_and_a_half_of_a_real_peak(model: Path, tmp_path: Path) -> None:
    data = demonstrations(tmp_path / "data.jsonl", 120)
    given = ["--model", str(model), "--data", str(data), "--row-tokens", "128", "--rows-per-minibatch", "16"]
    given += ["--keep-every", "1", "--out", str(tmp_path / "run")]
    need = estimate(given)
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, "sft", *given], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peak = int(done.stdout)
    assert need.total / 1.5 < peak < need.total * 1.5, f"{need.total / 2**20:.0f} MiB, and it took {peak / 2**20:.0f}"


def test_a_family_that_runs_the_models_own_modules_keeps_more_of_a_pass(model: Path, tmp_path: Path) -> None:
    data = demonstrations(tmp_path / "data.jsonl", 120)
    given = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / "run")]
    written = estimate(given).parts["activations"]
    settings = json.loads((model / "config.json").read_text())
    other = shutil.copytree(model, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(settings | {"architectures": ["GraniteForCausalLM"]}))
    assert estimate(["--model", str(other), *given[2:]]).parts["activations"] > 1.5 * written


def test_lora_needs_no_moments_of_the_frozen_weights(model: Path, tmp_path: Path) -> None:
    data = demonstrations(tmp_path / "data.jsonl")
    given = ["--model", str(model), "--data", str(data)]
    full, thin = estimate(given).parts, estimate([*given, "--lora", "--lora-rank", "4"]).parts
    # 6 layers x rank 4 x (4 projections of 256 + 256, 3 of 256 + 704) numbers, a gradient of 4 bytes for each.
    assert thin["gradients"] == 6 * 4 * (4 * 512 + 3 * 960) * 4
    assert full["gradients"] == full["weights"] == thin["weights"]
    assert full["AdamW's moments"] == 2 * full["weights"]


def test_a_command_that_cannot_fit_says_so_with_the_numbers_before_it_starts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = demonstrations(tmp_path / "data.jsonl", 4000)
    huge = ["--row-tokens", "512", "--rows-per-microbatch", "100000000"]
    # Four thousand short rows bound the tokens at once; repeated reading makes a file of many.
    many = [str(data)] * 300
    given = ["sft", "--model", str(model), "--data", *many, "--out", str(tmp_path / "run"), *huge]
    assert main(given) == 1
    said = capsys.readouterr().err
    assert "would take about" in said
    assert "are available" in said
    assert "activations" in said
    assert not (tmp_path / "run").exists()


def test_estimate_prints_a_table_and_says_whether_it_fits(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = demonstrations(tmp_path / "data.jsonl")
    assert main(["estimate", "all", "--model", str(model), "--data", str(data)]) == 0
    said = capsys.readouterr().out
    for command in ("sft", "reward", "ppo", "dpo", "kto", "rloo"):
        assert f"attune {command}\n" in said
    assert said.count("it fits") == 6
    assert "KV cache" in said


def test_scoring_needs_the_reward_model_alone_and_a_function_needs_no_model(model: Path, tmp_path: Path) -> None:
    data = demonstrations(tmp_path / "data.jsonl")
    given = argparse.Namespace(data=[data], reward=str(model), model=None, compute="float32")
    by_model = estimate_memory("score", given, None, model=model).parts
    assert by_model["weights"] == 0
    assert by_model["models beside"] == PARAMETERS * 4
    assert by_model["activations"] > 0
    given.reward = "module:function"
    by_function = estimate_memory("score", given, None, model=model).parts
    assert by_function["weights"] == by_function["models beside"] == by_function["activations"] == 0


def test_every_model_beside_the_trained_one_counts(model: Path, tmp_path: Path) -> None:
    data = demonstrations(tmp_path / "data.jsonl")
    given = ["--model", str(model), "--data", str(data), f"--reward={model}", "--judge", str(model)]
    assert estimate_of("ppo", [*given, "--served", str(model)]).parts["models beside"] == 3 * PARAMETERS * 4


def test_online_dpo_samples_and_so_needs_a_cache(model: Path, tmp_path: Path) -> None:
    given = ["--model", str(model), "--data", str(demonstrations(tmp_path / "data.jsonl"))]
    assert estimate_of("dpo", given).parts["KV cache"] == 0
    assert estimate_of("dpo", [*given, "--online", "--reward", "m:f"]).parts["KV cache"] > 0


def test_a_pair_counts_its_prompt_twice(model: Path, tmp_path: Path) -> None:
    pair = {"prompt": "why " * 900, "chosen": "so", "rejected": "no"}
    data = write_jsonl(tmp_path / "pairs.jsonl", [pair] * 40)
    given = ["--model", str(model), "--data", str(data), "--microbatch-tokens", "1"]
    # A row of JSONL holds the prompt once; both answers of a pair are read with it.
    assert estimate_of("dpo", given).parts["activations"] > 1.9 * estimate_of("kto", given).parts["activations"]
