"""A reward model fitted by two processes with gloo, against the same fit by one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
import torch

from rlhf_core.learning.devices import Devices
from rlhf_core.learning.reward_files import load_reward
from tests.rlhf_core.learning.reward_process import train
from tests.rlhf_core.learning.simulated_people import make_trunk

ROOT = Path(__file__).resolve().parents[3]


def start(rank: int, port: int, trunk_dir: Path, output: Path) -> subprocess.Popen[str]:
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return subprocess.Popen(
        [sys.executable, "-m", "tests.rlhf_core.learning.reward_process", str(trunk_dir), str(output)],
        cwd=ROOT,
        env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_fit_what_one_does(tmp_path: Path) -> None:
    trunk_dir, output = make_trunk(tmp_path / "policy"), tmp_path / "together"
    output.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [start(rank, port, trunk_dir, output) for rank in range(2)]
    try:
        errors = [process.communicate(timeout=240)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], errors
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
