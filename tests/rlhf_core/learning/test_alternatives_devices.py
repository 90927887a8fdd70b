"""DPO, KTO and RLOO on two processes with gloo, against the same run on one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file

from tests.rlhf_core.learning.alternatives_process import NAMES, train
from tests.rlhf_core.learning.test_rloo import untimed
from tests.two_processes import run_two


@pytest.fixture(scope="module")
def two_processes(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first of two processes left what it had."""
    output = tmp_path_factory.mktemp("two")
    run_two("-m", "tests.rlhf_core.learning.alternatives_process", str(tiny_model_dir), str(output))
    return output


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_measure_and_learn_what_one_does(name: str, two_processes: Path, tiny_model_dir: Path) -> None:
    trainee, alone = train(name, tiny_model_dir, None)
    together = msgspec.json.decode((two_processes / f"{name}.json").read_bytes(), type=list[dict[str, float]])
    for ours, theirs in zip(untimed(alone), untimed(together), strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-3)
    weights = load_file(two_processes / f"{name}.safetensors")
    for key, weight in trainee.model.state_dict().items():
        torch.testing.assert_close(weights[key], weight, atol=1e-4, rtol=0)
