"""What the headers of weight files say, and files that only look like them."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from rlhf_core.engine.memory import plan_memory
from rlhf_core.errors import ModelError
from rlhf_core.models.load import load_policy
from rlhf_core.weight_files import count_numbers, read_headers


def test_the_headers_of_all_files_are_one_table(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(2, 3)}, tmp_path / "model-1.safetensors", metadata={"format": "pt"})
    save_file({"b": torch.zeros(4, dtype=torch.bfloat16)}, tmp_path / "model-2.safetensors")
    headers = read_headers(tmp_path)
    assert {name: (entry["dtype"], entry["shape"]) for name, entry in headers.items()} == {
        "a": ("F32", [2, 3]),
        "b": ("BF16", [4]),
    }
    assert count_numbers(tmp_path) == 10


def header(content: object) -> bytes:
    text = json.dumps(content).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "content",
    [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\xff" * 64,
        b"short",
        struct.pack("<Q", 4) + b"oops",
        header([1, 2]),
        header({"a": 3}),
        header({"a": {"dtype": "F32"}}),
    ],
)
def test_what_is_no_weight_file_is_one_sentence(content: bytes, tiny_model_dir: Path, tmp_path: Path) -> None:
    for path in tiny_model_dir.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError):
        load_policy(tmp_path, frozen=True)
    with pytest.raises(ModelError):
        plan_memory(tmp_path, max_running=1, max_context=64, prefix_cache_tokens=0, dtype=torch.float32)
