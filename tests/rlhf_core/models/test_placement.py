from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rlhf_core.errors import ModelError
from rlhf_core.models.load import load_policy
from rlhf_core.models.placement import choose_device, choose_dtype, describe, has_bfloat16

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


def test_the_description_holds_the_numbers_of_the_loaded_policy(tiny_model_dir: Path) -> None:
    described = describe(load_policy(tiny_model_dir, dtype="bfloat16", max_context=100))
    assert described.pop("device").startswith("cpu (")
    assert described == {
        "model": "LlamaForCausalLM",
        # Embedding and head 2 x 300 x 32; per layer queries and output 2 x 32 x 32, keys and values 2 x 32 x 16,
        # MLP 3 x 32 x 64, two norms of 32; the last norm.
        "parameters": 2 * 300 * 32 + 2 * (2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 + 2 * 32) + 32,
        "dtype": "bfloat16",
        "layers": 2,
        "window": None,
        "context": 100,
        # 2 layers x 2 key heads x (8 + 8) numbers x 2 bytes.
        "kv_bytes_per_token": 128,
    }
