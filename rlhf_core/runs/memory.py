"""How much memory a command will take, from a configuration, the headers of weight files and the size of the data.

Arithmetic alone: no weight is read, so what cannot fit is refused before it starts. The parts are upper bounds for a
training in float32 that holds everything at once; bfloat16 counts as float32, because the weights that learn stay so.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from transformers import AutoConfig

from rlhf_core.engine.memory import available_memory, in_words, plan_memory
from rlhf_core.errors import ModelError
from rlhf_core.learning.analyse import LOGITS_AT_ONCE
from rlhf_core.models.documents import PRODUCT_TOKENS, PRODUCT_TOKENS_IN_HALF
from rlhf_core.models.fused import FUSED
from rlhf_core.models.lora import is_adapter
from rlhf_core.models.placement import choose_device
from rlhf_core.runs.options import read_lora
from rlhf_core.runs.precision import choose_compute
from rlhf_core.runs.record import models_beside
from rlhf_core.weight_files import count_numbers

PROGRAM: Final = 400 << 20
"""Python, torch and transformers, before any model."""
FLOAT: Final = 4
KEPT: Final = (14, 8)
"""Vectors that a layer keeps for its backward pass, per token: of the model's width (norms, projections, residuals) and
of the width inside the MLP, where an activation may be made of several operations."""
KEPT_WRITTEN: Final = (8, 4)
"""The same, of the families whose training forward is written out (models/trunk.py)."""
LOGIT_COPIES: Final = 2
"""Their logprobs, and one that passes: the logits themselves, or their gradient."""
SAMPLING: Final = 56 << 20
"""What sampling leaves between a training's blocks, beside its logits and its cache."""
BYTES_PER_TOKEN: Final = 3
"""Of text in a data file: fewer than English has, so that tokens are not undercounted."""
TEMPLATE_TOKENS: Final = 32
"""What a chat template adds to a row."""
EXAMPLE_BYTES: Final = 20
"""A token of the data in memory, with its mark."""
WITH_REFERENCE: Final = frozenset({"ppo", "rloo", "dpo", "kto"})
WITH_LOGITS: Final = WITH_REFERENCE | {"sft"}


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes by what they hold, in the order of size in a training."""

    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())

    def lines(self) -> list[str]:
        """A table for people."""
        wide = max(map(len, [*self.parts, "in all"]))
        rows = [*((name, size) for name, size in self.parts.items() if size), ("in all", self.total)]
        return [f"{name:<{wide}}  {in_words(size):>10}" for name, size in rows]


def estimate_memory(
    command: str, options: argparse.Namespace, settings: msgspec.Struct | None, *, model: Path, processes: int = 1
) -> MemoryNeed:
    """What `attune command` with these options takes at its peak, each process by itself. Without settings it only
    scores.

    Raises ModelError when the model cannot be measured.
    """
    from rlhf_core.runs.model import base_directory

    model = base_directory(model) if is_adapter(model) else model
    config: Any = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False).get_text_config()
    sizes = plan_memory(
        model, max_running=1, max_context=1 << 20, prefix_cache_tokens=0, dtype=torch.float32, packed=False
    )
    numbers: dict[str, Any] = msgspec.to_builtins(settings) if settings else {}
    data = sum(path.stat().st_size for path in options.data if path.is_file())
    row = min(sizes.max_context, longest_row(options.data) // BYTES_PER_TOKEN + TEMPLATE_TOKENS)
    tokens = min(_tokens_at_once(command, numbers, row), data // BYTES_PER_TOKEN + 2 * row)
    trained = _trained(options, config, sizes.parameters) if settings else 0
    beside = sum(_weights(path) for path in models_beside(options).values())
    passes = settings is not None or beside > 0  # a function scores without any
    slots = min(int(numbers.get("sampler_slots", 0)), int(numbers.get("rollouts", 1 << 20)))
    answer = row + int(numbers.get("max_new_tokens", 0))
    half = choose_compute(options.compute) == "bfloat16"
    by_products = min(answer, PRODUCT_TOKENS_IN_HALF if half else PRODUCT_TOKENS)
    parts = {
        "program": PROGRAM,
        "weights": sizes.parameters * FLOAT if settings else 0,
        "gradients": trained * FLOAT * (1 if processes == 1 else 3),
        "AdamW's moments": 2 * trained * FLOAT,
        "state to resume": 3 * trained * FLOAT,
        "reference": sizes.parameters * FLOAT if command in WITH_REFERENCE and trained == sizes.parameters else 0,
        "models beside": beside,
        "activations": tokens * _per_token(config, by_products, trains=settings is not None) if passes else 0,
        "logits": LOGIT_COPIES * FLOAT * min(LOGITS_AT_ONCE, tokens * sizes.vocab_size)
        if command in WITH_LOGITS
        else 0,
        "sampling": SAMPLING + slots * sizes.vocab_size * FLOAT if "sampler_slots" in numbers else 0,
        "KV cache": slots * min(answer, sizes.max_context) * sizes.kv_per_token if "sampler_slots" in numbers else 0,
        "data": data // BYTES_PER_TOKEN * EXAMPLE_BYTES,
    }
    return MemoryNeed(parts)


def require_memory(
    command: str, options: argparse.Namespace, settings: msgspec.Struct | None, *, model: Path, processes: int
) -> None:
    """Raise ModelError with the numbers when a command cannot fit, unless `--force` says to try."""
    if options.force:
        return
    need = estimate_memory(command, options, settings, model=model, processes=processes)
    device = choose_device("auto")
    available = available_memory(device)
    wanted = need.total - PROGRAM  # the program itself is already there
    if wanted * (processes if device.type == "cpu" else 1) > available:
        parts = ", ".join(f"{name} {in_words(size)}" for name, size in need.parts.items() if size and name != "program")
        raise ModelError(
            f"`attune {command}` would take about {in_words(wanted)} of memory and {in_words(available)} are available "
            f"({parts}); take smaller microbatches or --lora, or --force to try"
        )


def longest_row(paths: Sequence[Path]) -> int:
    """Bytes of the longest line of the JSONL files; of Parquet, whose rows have no bytes of their own, an average one.

    A row of Parquet is taken to be four times the average, uncompressed.
    """
    longest = 0
    for path in paths:
        if path.suffix == ".parquet":
            longest = max(longest, _parquet_row(path))
        elif path.is_file():
            with path.open("rb") as file:
                longest = max(longest, max(map(len, file), default=0))
    return longest


def _parquet_row(path: Path) -> int:
    import pyarrow.parquet as parquet

    try:
        metadata = parquet.read_metadata(path)
    except (OSError, ValueError):
        return 0  # reading it will say what is wrong
    size = sum(metadata.row_group(at).total_byte_size for at in range(metadata.num_row_groups))
    return 4 * size // max(1, metadata.num_rows)


def _tokens_at_once(command: str, numbers: dict[str, Any], row: int) -> int:
    """Tokens of one forward and backward pass."""
    if "rows_per_microbatch" in numbers:
        return int(numbers["rows_per_microbatch"]) * int(numbers["row_tokens"])
    if command == "dpo" and "sampler_slots" not in numbers:
        return max(int(numbers["microbatch_tokens"]), 2 * row)  # both answers of a pair, each with its prompt
    if "microbatch_tokens" in numbers:
        return max(int(numbers["microbatch_tokens"]), row + int(numbers.get("max_new_tokens", 0)))
    return 2 * int(numbers.get("batch_size", 16)) * row


def _per_token(config: Any, row: int, *, trains: bool) -> int:
    """Bytes that one token keeps of a forward pass until its backward pass; without one, of two layers at a time.

    `row` is the longest document that attends by products, of which a token keeps the weights of its attention.
    """
    inner = int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size)
    outer_vectors, inner_vectors = KEPT_WRITTEN if FUSED.intersection(config.architectures or ()) else KEPT
    layer = (outer_vectors * int(config.hidden_size) + inner_vectors * inner) * FLOAT
    layers = int(config.num_hidden_layers) if trains else 2
    weights = int(config.num_attention_heads) * row * FLOAT
    return (layer + weights) * layers


def _trained(options: argparse.Namespace, config: Any, parameters: int) -> int:
    """How many numbers learn: all, or the terms beside the projections of every layer."""
    lora = read_lora(options)
    if lora is None:
        return parameters
    width = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * width)
    # Four projections of attention and three of the MLP, each with its two thin matrices.
    return int(config.num_hidden_layers) * lora.rank * (4 * 2 * width + 3 * (width + inner))


def _weights(directory: Path) -> int:
    """Bytes of the weights in a directory, in float32, which is what they are loaded in."""
    return count_numbers(directory) * FLOAT
