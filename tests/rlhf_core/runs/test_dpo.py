"""`attune dpo`, as a person types it: offline on pairs and ties, online against a reward, stopped and resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rlhf_core.cli import main
from rlhf_core.models.load import load_policy
from tests.rlhf_core.runs.files import metrics

ROWS = [
    {"prompt": "why is my order late", "chosen": "it waits", "rejected": "no no"},
    {"prompt": "is the router slow", "chosen": "it is slow again", "rejected": "no"},
    {"prompt": "is the fox quick", "chosen": "the fox", "rejected": "the dog", "tie": True},
    {"prompt": "my order waits", "chosen": "it waits again", "rejected": "no no no"},
]
FAST = ["--learning-rate", "1e-3", "--minibatch-size", "2", "--keep-every", "1"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def reward(prompts: list[str], responses: list[str]) -> list[float]:
    """Named on the command line below."""
    return [float(len(response)) for response in responses]


def command(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["dpo", "--model", str(model), "--data", str(data), "--out", str(out), *FAST, *more]


def test_pairs_and_ties_make_a_policy_that_can_be_served(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(command(tiny_model_dir, data, out, "--epochs", "3")) == 0
    logged = metrics(out)
    assert [each["step"] for each in logged] == [1, 2, 3, 4, 5, 6]
    assert sum(each["preference/ties"] for each in logged) == 3
    policy, before = load_policy(out / "model"), load_policy(tiny_model_dir)
    assert not torch.equal(policy.model.lm_head.weight, before.model.lm_head.weight)


def test_an_adapter_is_saved_as_peft_reads_it(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(command(tiny_model_dir, data, out, "--lora", "--lora-rank", "2")) == 0
    assert (out / "model" / "adapter_config.json").is_file()
    assert all("lora" in name for name in load_file(out / "model" / "adapter_model.safetensors"))


def test_online_dpo_climbs_a_function(tiny_model_dir: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    name = "tests.rlhf_core.runs.test_dpo:reward"
    online = ["--online", "--reward", name, "--updates", "2", "--rollouts", "8", "--max-new-tokens", "6"]
    assert main(command(tiny_model_dir, data, out, *online)) == 0
    logged = metrics(out)
    assert len(logged) == 2
    assert logged[0]["objective/kl_seq"] == 0.0
    assert (out / "model" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--updates", "3"], "--updates means something only with --online"),
        (
            ["--online", "--reward", "a:b", "--tie-learning-rate", "1"],
            "--tie-learning-rate means something only without",
        ),
        (["--online"], "--online needs --reward"),
        (["--reward", "a:b"], "--reward needs --online"),
        (["--kl-coef", "0"], "--kl-coef is 0: expected `float` > 0.0"),
    ],
)
def test_options_that_would_do_nothing_are_refused(
    tiny_model_dir: Path, data: Path, tmp_path: Path, more: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tiny_model_dir, data, tmp_path / "run", *more)) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
