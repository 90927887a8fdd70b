from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlhf_core.engine.memory import MemoryPlan, available_memory, check_fits, plan_memory
from rlhf_core.errors import ModelError
from rlhf_core.models.load import load_policy
from tests.rlhf_core.families import FAMILIES, make_family

MakeTinyModel = Callable[..., Path]

CPU = torch.device("cpu")
GIB = 2**30


def plan(directory: Path, dtype: torch.dtype = torch.float32, packed: bool = False) -> MemoryPlan:
    return plan_memory(directory, max_running=8, max_context=1024, prefix_cache_tokens=100, dtype=dtype, packed=packed)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_plan_made_before_loading_is_what_the_loaded_policy_takes(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    directory = make_family(make_tiny_model, tmp_path, FAMILIES[name]())
    policy, planned = load_policy(directory), plan(directory)
    assert planned.kv_per_token == policy.kv_bytes_per_token
    # By address, because tied weights have two names in memory and one in the file.
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in policy.model.state_dict().values()}
    assert planned.weights == sum(tensors.values())
    assert planned.max_context == policy.max_context == 256


def test_the_total_is_two_weight_sets_with_their_caches_and_what_they_share(tiny_model_dir: Path) -> None:
    planned = plan(tiny_model_dir)
    parameters = 2 * 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32
    # 2 layers x 2 key heads x (8 + 8) numbers x 4 bytes = 256 a token; 8 slots of 256 tokens; 300 x 32 bytes a row.
    assert (planned.weights, planned.kv, planned.prefixes, planned.sampling) == (
        4 * parameters,
        8 * 256 * 256,
        100 * 256,
        8 * 300 * 32,
    )
    assert planned.total == 2 * (4 * parameters + 8 * 256 * 256 + 100 * 256) + 8 * 300 * 32


def test_bfloat16_halves_and_packing_doubles(tiny_model_dir: Path) -> None:
    whole, half, packed = (
        plan(tiny_model_dir),
        plan(tiny_model_dir, torch.bfloat16),
        plan(tiny_model_dir, packed=True),
    )
    assert (half.weights * 2, half.kv * 2) == (whole.weights, whole.kv)
    assert (packed.weights, packed.kv) == (2 * whole.weights, whole.kv)


def test_weights_stored_in_bfloat16_are_planned_for_as_they_are_held(
    make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    sizes = {}
    for dtype in (torch.float32, torch.bfloat16):
        place = tmp_path / str(dtype)
        sizes[dtype] = plan(make_family(make_tiny_model, place, FAMILIES["llama"](), dtype=dtype))
        held = load_policy(place, frozen=True).model.state_dict().values()
        assert sizes[dtype].weights == sum(tensor.nbytes for tensor in held)
    assert sizes[torch.float32].weights == 2 * sizes[torch.bfloat16].weights
    assert sizes[torch.float32].kv == sizes[torch.bfloat16].kv


def test_a_model_that_does_not_fit_is_refused_with_the_numbers() -> None:
    # 2 x (4 GiB + 10 slots x 100 tokens x 1 MiB + 512 MiB) + 10 x 2^14 x 32 bytes = 8 + 1.95 + 1 + 0.005 GiB.
    planned = MemoryPlan(4 * GIB, 2**20, 10, 100, 512, 2**14, 2**30)
    check_fits(planned, planned.total)
    with pytest.raises(ModelError) as refused:
        check_fits(planned, planned.total - 1)
    for number in (
        "10.96 GiB",
        "4.00 GiB",
        "1000.0 MiB",
        "10 slots x 100 tokens x 1048576 bytes",
        "512.0 MiB",
        "5.0 MiB",
    ):
        assert number in str(refused.value)
    assert "ATTUNE_MAX_RUNNING" in str(refused.value)


def test_a_directory_without_a_model_cannot_be_measured(tiny_model_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be measured"):
        plan(tmp_path)
    (tmp_path / "config.json").write_text((tiny_model_dir / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ModelError, match="cannot be measured"):
        plan(tmp_path)


def test_available_memory_is_the_least_of_the_machine_and_every_group_around_this_process(tmp_path: Path) -> None:
    write(tmp_path / "proc/meminfo", "MemTotal: 16000 kB\nMemAvailable: 8000 kB\n")
    assert available_memory(CPU, tmp_path) == 8000 * 1024
    write(tmp_path / "proc/self/cgroup", "0::/service/this\n")
    groups = tmp_path / "sys/fs/cgroup"
    write(groups / "service/this/memory.max", "max\n")
    write(groups / "service/this/memory.current", "123\n")
    assert available_memory(CPU, tmp_path) == 8000 * 1024
    write(groups / "service/memory.max", "5000000\n")
    write(groups / "service/memory.current", "2000000\n")
    assert available_memory(CPU, tmp_path) == 3_000_000
    # Files that nobody writes to are dropped when memory is short.
    write(groups / "service/memory.stat", "anon 1500000\ninactive_file 400000\n")
    assert available_memory(CPU, tmp_path) == 3_400_000
    write(groups / "memory/memory.limit_in_bytes", "1000000\n")
    write(groups / "memory/memory.usage_in_bytes", "1200000\n")
    assert available_memory(CPU, tmp_path) == 0


def test_this_machine_has_memory() -> None:
    assert available_memory(CPU) > 0


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
