"""`attune verify`: passes on a sound model, and fails when something is broken."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_core.cli import main
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.runs.proofs import Proof, prove_batches, prove_serving


def test_every_row_passes_on_a_sound_model(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--model", str(tiny_model_dir)]) == 0
    said = capsys.readouterr().out
    assert "all 15 rows passed" in said
    assert said.count("control:") == 6
    assert "FAILED" not in said


@pytest.fixture
def broken(tiny_model_dir: Path) -> LoadedPolicy:
    """A model whose attention looks at its last key twice when it is called as training calls it."""
    policy = load_policy(tiny_model_dir)
    projection = policy.model.model.layers[0].self_attn.v_proj

    def leak(_module: torch.nn.Module, _inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + output[:, -1:]

    projection.register_forward_hook(leak)
    return policy


def test_a_model_that_sees_its_neighbours_fails_the_checks_of_batches(broken: LoadedPolicy) -> None:
    failed = [proof.name for proof in prove_batches(broken) if not proof.passed]
    assert failed == ["batches: padding changes logprobs by, nats", "batches: packing changes logprobs by, nats"]


def test_an_engine_that_computes_something_else_fails_the_checks_of_serving(broken: LoadedPolicy) -> None:
    failed = [proof.name for proof in prove_serving(broken) if not proof.passed]
    assert "engine: logprobs against the trainer's, nats" in failed


def test_a_control_passes_only_where_the_check_notices() -> None:
    assert Proof("check", 0.1, 1.0).passed
    assert not Proof("check", float("nan"), 1.0).passed
    assert Proof("control", 2.0, 1.0, control=True).passed
    assert not Proof("control", 0.1, 1.0, control=True).passed
