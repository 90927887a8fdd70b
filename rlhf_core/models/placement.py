"""Where a policy's weights live, and in what precision.

Training keeps float32 on a CPU; only serving chooses. bfloat16 halves the memory and, where the machine multiplies it
in hardware, the time of a step; to compute in it elsewhere would be slower than in float32. There, weights that were
published in bfloat16 are held in it and computed with in float32: as exact as float32 weights, at half their size.

The kernels of a CPU (models/compiled.py) multiply in either type, and add up in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from rlhf_core.errors import ModelError
from rlhf_core.models.fused import FUSED
from rlhf_core.weight_files import read_headers

if TYPE_CHECKING:
    from rlhf_core.models.load import LoadedPolicy

Precision = Literal["auto", "float32", "bfloat16"]
Device = Literal["auto", "cpu", "cuda"]


def choose_device(wanted: Device) -> torch.device:
    """`auto` is CUDA where there is one. Raises ModelError when CUDA is asked for and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is cuda, but torch finds no CUDA device: use cpu")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def choose_dtype(wanted: Precision, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 where the device multiplies it in hardware, float32 otherwise."""
    if wanted == "auto":
        return torch.bfloat16 if has_bfloat16(device) else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def choose_weights_dtype(directory: Path, config: Any, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """What frozen weights are held in where steps are computed in `dtype`: bfloat16 if that is what they are, and the
    kernels of a CPU (models/compiled.py) compute with them in float32.

    Raises OSError, ValueError or struct.error where a weight file cannot be read.
    """
    if dtype != torch.float32 or not computed_by_kernels(_architecture(config), dtype, device):
        return dtype
    # Old files also hold the frequencies of rotary embeddings, which no model reads any more.
    stored = {entry.get("dtype") for name, entry in read_headers(directory).items() if not name.endswith("inv_freq")}
    return torch.bfloat16 if stored == {"BF16"} else dtype


def computed_by_kernels(architecture: str | None, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a model of that class multiplies in this type by the kernels of a CPU. One with tiles of its own for
    bfloat16 (AMX) multiplies many rows several times as fast by them, which torch knows how to use."""
    if device.type != "cpu" or architecture not in FUSED:
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and not torch.cpu._is_amx_tile_supported())


def _architecture(config: Any) -> str | None:
    return getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), "__name__", None)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: AVX512-BF16 or AMX on a CPU, Ampere or later on CUDA."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not torch.backends.mkldnn.is_available():
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def packing_helps(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether steps are faster with a second, packed copy of the weights (models/projection.py). Kernels multiply them
    as they are."""
    return device.type == "cpu" and dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported()


def describe(policy: LoadedPolicy) -> dict[str, Any]:
    """What a server prints of the policy that it starts with."""
    model: Any = policy.model
    return {
        "model": type(model).__name__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "dtype": str(policy.dtype).removeprefix("torch."),
        "weights_dtype": str(model.dtype).removeprefix("torch."),
        "device": _device_name(model.device),
        "layers": len(policy.attention),
        "window": min((layer.window for layer in policy.attention if layer.window), default=None),
        "context": policy.max_context,
        "kv_bytes_per_token": policy.kv_bytes_per_token,
    }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    return f"cpu ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
