"""A reward model fitted by two processes with gloo, against the same fit by one."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
import torch

from rlhf_core.learning.devices import Devices
from rlhf_core.learning.reward.files import load_reward
from tests.rlhf_core.learning.reward.reward_process import train
from tests.rlhf_core.learning.reward.simulated_people import make_trunk
from tests.two_processes import run_two


def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    trunk_dir, output = make_trunk(tmp_path / "policy"), tmp_path / "together"
    output.mkdir()
    run_two("-m", "tests.rlhf_core.learning.reward.reward_process", str(trunk_dir), str(output))
    threads = torch.get_num_threads()
    alone, logged = train(trunk_dir, Devices(device="cpu"))
    torch.set_num_threads(threads)
    together = msgspec.json.decode((output / "metrics.json").read_bytes(), type=list[dict[str, float]])
    assert len(together) == 6  # 36 judgements in batches of 7
    for ours, theirs in zip(logged, together, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-3, abs=1e-4)
    weights = load_reward(output).state_dict()
    for name, value in alone.model.state_dict().items():
        assert torch.allclose(weights[name].float(), value.float(), atol=1e-3), name
