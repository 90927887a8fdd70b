"""Devices: one process computes what it would alone, and two together what one would."""

from __future__ import annotations

import pytest
import torch

from rlhf_core.errors import SettingsError
from rlhf_core.learning.devices import Devices
from tests.two_processes import run_two

PAIR = """
import torch
from rlhf_core.learning.devices import Devices

devices = Devices(device="cpu")
assert devices.count == 2 and devices.is_main == (devices.rank == 0)
mine = devices.share([10, 11, 12, 13, 14])
assert mine == ([10, 12, 14] if devices.rank == 0 else [11, 13]), mine
assert devices.gather([2 * each for each in mine], 5) == [20, 22, 24, 26, 28]
one, two, frozen = (torch.nn.Parameter(torch.zeros(2)) for _ in range(3))
frozen.requires_grad_(False)
one.grad = torch.full((2,), float(devices.rank + 1))
if devices.rank == 1:
    two.grad = torch.tensor([5.0, 7.0])
devices.sum_gradients([one, two, frozen])
assert one.grad.tolist() == [3.0, 3.0]  # 1 + 2
assert two.grad.tolist() == [5.0, 7.0]  # none counts as zero
assert frozen.grad is None
seen = devices.sum_numbers({"n": devices.rank + 1.0, "largest": devices.rank + 4.0}, largest=["largest"])
assert seen == {"n": 3.0, "largest": 5.0}, seen
devices.wait()
print("agreed")
"""


def test_two_processes_share_gather_and_sum() -> None:
    assert [said.strip() for said in run_two("-c", PAIR)] == ["agreed", "agreed"]


def test_one_process_keeps_everything_and_changes_nothing() -> None:
    devices = Devices(device="cpu")
    parameter = torch.nn.Parameter(torch.zeros(1))
    devices.sum_gradients([parameter])
    assert parameter.grad is None
    assert devices.share([1, 2, 3]) == devices.gather([1, 2, 3], 3) == [1, 2, 3]
    assert devices.sum_numbers({"a": 2.0}) == {"a": 2.0}
    assert (devices.count, devices.is_main) == (1, True)


def test_both_precisions_can_be_had_in_one_process() -> None:
    linear, row = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for compute, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float32", torch.float32)):
        with Devices(compute, "cpu").autocast():  # type: ignore[arg-type]
            assert linear(row).dtype == dtype


def test_a_launcher_that_starts_one_process_for_two_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    # What `accelerate launch --cpu --num_processes 2` leaves in the environment of its only process.
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SettingsError, match="accelerate launch --multi_gpu"):
        Devices(device="cpu")
