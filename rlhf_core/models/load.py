"""Model directories: copy one in, load one, render its prompts.

A servable directory is the plain transformers layout: config.json, safetensors weights, a tokenizer, a chat
template. Nothing that would run code is read. Everything here refuses with one sentence (ModelError) rather
than serve a model whose answers would be wrong: missing weights, remote code, attention that the engine does
not compute.
"""

from __future__ import annotations

import inspect
import json
import logging
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from jinja2 import TemplateError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from rlhf_core.errors import InvalidRequestError, ModelError
from rlhf_core.models.attention import ATTENTION, register_attention
from rlhf_core.models.forward import Forward, make_forward
from rlhf_core.models.inspection import AttentionLayer, inspect_attention, refuse_chunks, refuse_special_attention
from rlhf_core.models.placement import Device, Precision, choose_device, choose_dtype, choose_weights_dtype
from rlhf_core.records import Message

PROBES: Final = ("Hello.", "What can you do for me?", "My order has not arrived yet.")
DESK_CHECKPOINT: Final = Path(__file__).parent.parent / "desk" / "checkpoint"

MODEL_FILES: Final = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
)
"""Everything that a model directory needs; all else, and above all code and pickles, is left behind."""


@dataclass(frozen=True, eq=False)
class LoadedPolicy:
    """Weights in memory, with what serving needs to know of them. Compared by identity: one load, one weight set."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    policy_version: int
    checkpoint_id: str
    weights_sha256: str
    max_context: int
    """Tokens, prompt and answer together."""
    end_token_ids: frozenset[int]
    attention: tuple[AttentionLayer, ...] = ()
    """The shapes of every layer's keys and values, and its window."""
    forward: Forward | None = None
    """How a step is computed where the weights are frozen; None: from the model's own weights, as they then are."""
    dtype: torch.dtype = torch.float32
    """What a step multiplies in, and keys and values are kept in. Weights may be held in a smaller type, of whose
    numbers they are."""
    base: LoadedPolicy | None = None
    """For an adapter: the policy whose weights it shares."""

    @property
    def vocab_size(self) -> int:
        return int(self.model.config.get_text_config().vocab_size)

    @property
    def kv_bytes_per_token(self) -> int:
        """What the cache holds for one token."""
        return sum(layer.elements for layer in self.attention) * self.dtype.itemsize


def load_policy(
    directory: Path,
    *,
    policy_version: int = 0,
    checkpoint_id: str = "",
    weights_sha256: str = "",
    max_context: int | None = None,
    frozen: bool = False,
    pack: bool = False,
    dtype: Precision = "float32",
    device: Device = "cpu",
) -> LoadedPolicy:
    """Load a directory in eval mode, from local safetensors only; for training, in float32 on the CPU.

    `max_context` can lower the model's own limit. The model computes ordinary attention when called as usual,
    so the same object can be trained. Raises ModelError in one sentence when the directory cannot be served.
    """
    _check_files(directory)
    _refuse_remote_code(directory)
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{directory}/config.json is not a model this release knows: {_first_line(error)}") from error
    refuse_special_attention(directory, config)
    text_config = config.get_text_config()
    limit = getattr(text_config, "max_position_embeddings", None) or max_context
    if limit is None:
        raise ModelError(f"{directory}/config.json has no max_position_embeddings: set a context length")
    context = min(int(limit), max_context or int(limit))
    refuse_chunks(directory, config, context)
    tokenizer = load_tokenizer(directory)
    place = choose_device(device)
    computed = choose_dtype(dtype, place)
    model = _load_model(directory, _held_dtype(directory, config, computed, place) if frozen else computed, place)
    attention = inspect_attention(directory, model, context)
    return LoadedPolicy(
        model=model,
        tokenizer=tokenizer,
        policy_version=policy_version,
        checkpoint_id=checkpoint_id,
        weights_sha256=weights_sha256,
        max_context=context,
        end_token_ids=end_tokens(directory, model.generation_config, model.config, tokenizer),
        attention=attention,
        forward=make_forward(model, max_context=context, frozen=True, dtype=computed, pack=pack) if frozen else None,
        dtype=computed,
    )


def _held_dtype(directory: Path, config: Any, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    try:
        return choose_weights_dtype(directory, config, dtype, device)
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"{directory} cannot be loaded: {_first_line(error)}") from error


def _check_files(directory: Path) -> None:
    if not directory.is_dir():
        raise ModelError(f"{directory} is not a model directory: it does not exist")
    if not (directory / "config.json").is_file():
        raise ModelError(f"{directory} has no config.json: it is not a transformers model directory")
    if not any(directory.glob("*.safetensors")):
        raise ModelError(f"{directory} has no safetensors weights; other weight formats are not read")
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise ModelError(f"{directory} has no tokenizer (tokenizer.json)")


def _refuse_remote_code(directory: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        path = directory / name
        if not path.is_file():
            continue
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ModelError(f"{path} is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ModelError(f"{path} is not a JSON object")
        if content.get("auto_map"):
            raise ModelError(f"{path} names code to run (auto_map), which is never done")
        if content.get("quantization_config"):
            raise ModelError(f"{path} describes quantised weights, which cannot be trained: use the original ones")


def load_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """Raises ModelError when the directory has none, or none with a chat template."""
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # The tokenizers library raises bare Exception for a malformed file.
        raise ModelError(f"{directory} has no tokenizer that can be loaded: {_first_line(error)}") from error
    if not tokenizer.chat_template:
        raise ModelError(f"{directory} has no chat template (chat_template.jinja): it is not a chat model")
    return tokenizer


def _load_model(directory: Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    register_attention()
    # A served process writes logs, and a bar is none.
    disable_progress_bar()
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=dtype,
            attn_implementation=ATTENTION,
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, torch and transformers each have their own for a bad weight file.
        raise ModelError(f"{directory} cannot be loaded: {_first_line(error)}") from error
    # transformers fills absent weights with random numbers and only warns.
    if missing := sorted(loading["missing_keys"]):
        raise ModelError(f"{directory} lacks {len(missing)} weights, among them {missing[0]}")
    if not getattr(model, "_supports_attention_backend", False) or not _takes_logits_to_keep(model):
        raise ModelError(f"{directory}: {type(model).__name__} does not let its attention be replaced")
    return model.eval().to(device)


def _takes_logits_to_keep(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def end_tokens(directory: Path, *sources: Any) -> frozenset[int]:
    """Every id that any of the sources (generation settings, configuration, tokenizer) names: published models
    disagree with themselves, and each is meant. Raises ModelError when none does."""
    found: set[int] = set()
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            found.update(ids if isinstance(ids, list | tuple) else [ids])
    if not found:
        raise ModelError(f"{directory} names no end token (eos_token_id): its answers would never end")
    return frozenset(int(token_id) for token_id in found)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__


def fetch_model(name: str, destination: Path) -> None:
    """Copy a model's files into `destination`: `desk` (bundled), a local directory, or a hub id `owner/name`.

    Links are followed, so the copy is whole. A template that stands in tokenizer_config.json is also written
    to chat_template.jinja, where checkpoints are checked for it. Raises ModelError when there is no such
    model.
    """
    source = locate_model(name)
    destination.mkdir(parents=True, exist_ok=True)
    for pattern in MODEL_FILES:
        for path in sorted(source.glob(pattern)):
            shutil.copyfile(path, destination / path.name)
    _check_files(destination)
    _refuse_remote_code(destination)
    _write_template(destination)


def locate_model(name: str) -> Path:
    """The directory of a model: `desk` (bundled), a local one, or a hub id, fetched if need be. Raises ModelError."""
    if name == "desk":
        if not DESK_CHECKPOINT.is_dir():
            raise ModelError("the bundled desk model is missing: `make desk` builds it")
        return DESK_CHECKPOINT
    local = Path(name).expanduser()
    if name and local.is_dir():
        return local
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"the model {name!r} is neither `desk`, nor a directory, nor a hub id like owner/name")
    logging.getLogger(__name__).info("fetching %s from the hub", name)
    try:
        # Subdirectories hold other formats of the same weights.
        return Path(snapshot_download(name, allow_patterns=list(MODEL_FILES), ignore_patterns=["*/*"]))
    except Exception as error:  # The hub client raises its own, httpx's and OS errors, all meaning the same here.
        raise ModelError(f"the model {name!r} could not be fetched from the hub: {_first_line(error)}") from error


def _write_template(directory: Path) -> None:
    path, config = directory / "chat_template.jinja", directory / "tokenizer_config.json"
    if path.exists() or not config.is_file():
        return
    template = json.loads(config.read_text(encoding="utf-8")).get("chat_template")
    if isinstance(template, str):
        path.write_text(template, encoding="utf-8")


def render_prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """Token ids of a conversation, up to where the assistant speaks next. Raises InvalidRequestError."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        rendered: Any = tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
        raise InvalidRequestError(
            f"this model's chat template does not accept the messages: {_first_line(error)}", param="messages"
        ) from error
    return [int(token_id) for token_id in rendered]


def probe_prompts(tokenizer: PreTrainedTokenizerBase) -> list[tuple[int, ...]]:
    """Token ids of a few fixed prompts, to ask of a policy before it takes traffic."""
    return [tuple(render_prompt(tokenizer, [Message("user", text)])) for text in PROBES]
