"""How much memory serving takes at most, and whether the machine has it. Arithmetic over a configuration and the
headers of weight files: no weight is read, so a model that cannot fit is refused before it is loaded.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig

from rlhf_core.errors import ModelError
from rlhf_core.models.placement import choose_weights_dtype
from rlhf_core.weight_files import count_numbers

CPU: Final = torch.device("cpu")
WEIGHT_SETS: Final = 2
"""The active policy, and the one that drains beside it after a swap."""
SAMPLING_BYTES: Final = 32
"""Per row and token of the vocabulary: logits, logprobs and probabilities in float32, the running sum in float64."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Upper bounds, in bytes unless said otherwise."""

    weights: int
    """One weight set, in the type that it is held in, with its packed copy if there is one."""
    kv_per_token: int
    max_running: int
    max_context: int
    """Tokens per slot, already cut to the model's own limit."""
    prefix_cache_tokens: int
    """Tokens of ended conversations that each weight set keeps for prompts that begin alike."""
    vocab_size: int
    parameters: int

    @property
    def kv(self) -> int:
        """The cache of one weight set, every slot full."""
        return self.max_running * self.max_context * self.kv_per_token

    @property
    def prefixes(self) -> int:
        """What one weight set keeps of ended conversations."""
        return self.prefix_cache_tokens * self.kv_per_token

    @property
    def sampling(self) -> int:
        return self.max_running * self.vocab_size * SAMPLING_BYTES

    @property
    def total(self) -> int:
        return WEIGHT_SETS * (self.weights + self.kv + self.prefixes) + self.sampling

    def __str__(self) -> str:
        return (
            f"at most {in_words(self.total)}: {WEIGHT_SETS} weight sets of {in_words(self.weights)}, each with a KV "
            f"cache of {in_words(self.kv)} ({self.max_running} slots x {self.max_context} tokens x {self.kv_per_token} "
            f"bytes) and {in_words(self.prefixes)} of kept prefixes, and {in_words(self.sampling)} to draw tokens"
        )


def plan_memory(
    directory: Path,
    *,
    max_running: int,
    max_context: int,
    prefix_cache_tokens: int,
    dtype: torch.dtype,
    device: torch.device = CPU,
    packed: bool = False,
) -> MemoryPlan:
    """What serving a model directory takes, computed in `dtype` on a device. `packed`: projections are held a second
    time, in a faster layout.

    Raises ModelError when the directory has no configuration or no weight file that can be read.
    """
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        parameters = count_numbers(directory)
        held = choose_weights_dtype(directory, config, dtype, device)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise ModelError(f"{directory} cannot be measured: {error}") from None
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None) or max_context
    return MemoryPlan(
        weights=parameters * held.itemsize * (2 if packed else 1),
        kv_per_token=kv_elements(text) * dtype.itemsize,
        max_running=max_running,
        max_context=min(max_context, int(limit)),
        prefix_cache_tokens=prefix_cache_tokens,
        vocab_size=int(text.vocab_size),
        parameters=parameters,
    )


def kv_elements(config: Any) -> int:
    """Numbers that all layers keep of one token, from the configuration of a text model."""
    heads = int(config.num_attention_heads)
    kv_heads = int(getattr(config, "num_key_value_heads", None) or heads)
    size = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    sizes = size + size
    if getattr(config, "kv_lora_rank", None):
        # Latent attention is cached as what it expands to, for every head.
        sizes = config.qk_nope_head_dim + config.qk_rope_head_dim + config.v_head_dim
        kv_heads = heads
    return int(config.num_hidden_layers * kv_heads * sizes)


def check_fits(plan: MemoryPlan, available: int) -> None:
    """Raises ModelError with every number when the plan takes more than `available` bytes."""
    if plan.total > available:
        raise ModelError(
            f"the model does not fit: {in_words(available)} of memory are available, and serving takes {plan}; lower "
            "ATTUNE_MAX_RUNNING, ATTUNE_MAX_CONTEXT or ATTUNE_PREFIX_CACHE_TOKENS, or serve a smaller model"
        )


def available_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Bytes that this process may still take: free on a GPU, else free on the machine and in its control groups.

    `root` is where /proc and /sys are found.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free
    return min([_free_on_machine(root), *_free_in_groups(root)])


def _free_on_machine(root: Path) -> int:
    """What Linux calls available, which counts caches it can drop; elsewhere all that is built in."""
    info = root / "proc/meminfo"
    if info.is_file():
        for line in info.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":
                return int(value.split()[0]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _free_in_groups(root: Path) -> list[int]:
    """Room left under each limit of the control groups (version 2, then 1) that hold this process."""
    groups = root / "sys/fs/cgroup"
    rooms = []
    for group in _own_groups(root, groups):
        rooms += _room(group, "memory.max", "memory.current", "inactive_file")
    rooms += _room(groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
    return rooms


def _own_groups(root: Path, groups: Path) -> list[Path]:
    """This process's group and those around it. In a container its own group is the root of what can be seen."""
    membership = root / "proc/self/cgroup"
    lines = membership.read_text().splitlines() if membership.is_file() else []
    own = next((groups / line[3:].lstrip("/") for line in lines if line.startswith("0::")), groups)
    return [own, *(parent for parent in own.parents if parent == groups or groups in parent.parents)]


def _room(group: Path, limit: str, usage: str, droppable: str) -> list[int]:
    if not (group / limit).is_file() or not (group / usage).is_file():
        return []
    bound = (group / limit).read_text().strip()
    if bound == "max":
        return []
    used = int((group / usage).read_text())
    stat = (group / "memory.stat").read_text().splitlines() if (group / "memory.stat").is_file() else []
    caches = sum(int(line.split()[1]) for line in stat if line.split()[0] == droppable)
    return [max(0, int(bound) - used + caches)]


def in_words(count: int) -> str:
    """Bytes, for people."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
