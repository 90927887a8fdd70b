from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from rlhf_core.errors import ModelError
from rlhf_core.models.load import load_policy
from rlhf_core.models.placement import choose_device, choose_dtype, describe, has_bfloat16
from tests.rlhf_core.families import FAMILIES, FUSED_FAMILIES, make_family

MakeTinyModel = Callable[..., Path]

CPU = torch.device("cpu")


def test_auto_is_bfloat16_only_where_the_hardware_multiplies_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for amx, avx512 in ((False, False), (False, True), (True, False)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx512=avx512: avx512)
        assert has_bfloat16(CPU) == (amx or avx512)
        assert choose_dtype("auto", CPU) == (torch.bfloat16 if amx or avx512 else torch.float32)


def test_what_is_asked_for_by_name_is_given() -> None:
    assert choose_dtype("float32", CPU) == torch.float32
    assert choose_dtype("bfloat16", CPU) == torch.bfloat16
    assert choose_device("cpu") == CPU


def test_cuda_without_a_device_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == CPU
    with pytest.raises(ModelError, match="torch finds no CUDA device"):
        choose_device("cuda")


def test_a_policy_is_loaded_in_float32_unless_asked_otherwise(tiny_model_dir: Path) -> None:
    assert load_policy(tiny_model_dir).model.dtype == torch.float32
    loaded = load_policy(tiny_model_dir, dtype="bfloat16")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("name", FAMILIES)
def test_frozen_weights_that_are_bfloat16_numbers_are_held_as_such_where_kernels_compute_with_them(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    directory = make_family(make_tiny_model, tmp_path, FAMILIES[name](), dtype=torch.bfloat16)
    held, learning = load_policy(directory, frozen=True, dtype="float32"), load_policy(directory)
    assert held.dtype == learning.dtype == learning.model.dtype == torch.float32
    assert held.model.dtype == (torch.bfloat16 if name in FUSED_FAMILIES else torch.float32)
    assert held.kv_bytes_per_token == learning.kv_bytes_per_token
    for own, whole in zip(held.model.parameters(), learning.model.parameters(), strict=True):
        assert torch.equal(own.float(), whole)


def test_one_weight_of_another_type_is_enough_for_all_to_be_held_in_float32(
    make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    directory = make_family(make_tiny_model, tmp_path, FAMILIES["llama"](), dtype=torch.bfloat16)
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float() * 1.001
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    assert load_policy(directory, frozen=True, dtype="float32").model.dtype == torch.float32


def test_the_description_holds_the_numbers_of_the_loaded_policy(tiny_model_dir: Path) -> None:
    described = describe(load_policy(tiny_model_dir, dtype="bfloat16", max_context=100))
    assert described.pop("device").startswith("cpu (")
    assert described == {
        "model": "LlamaForCausalLM",
        # Embedding and head 2 x 300 x 32; per layer queries and output 2 x 32 x 32, keys and values 2 x 32 x 16,
        # MLP 3 x 32 x 64, two norms of 32; the last norm.
        "parameters": 2 * 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32,
        "dtype": "bfloat16",
        "weights_dtype": "bfloat16",
        "layers": 2,
        "window": None,
        "context": 100,
        # 2 layers x 2 key heads x (8 + 8) numbers x 2 bytes.
        "kv_bytes_per_token": 128,
    }
