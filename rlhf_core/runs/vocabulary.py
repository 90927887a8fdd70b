"""How a model reads texts: its tokenizer, template, end tokens and context, without its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase

from rlhf_core.errors import ModelError


class Reads(Protocol):
    """What turning rows into tokens needs to know; a `LoadedPolicy` is one."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    @property
    def end_token_ids(self) -> frozenset[int]: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def max_context(self) -> int: ...


@dataclass(frozen=True)
class Vocabulary:
    """Made by `load_vocabulary`."""

    tokenizer: PreTrainedTokenizerBase
    end_token_ids: frozenset[int]
    vocab_size: int
    max_context: int


def load_vocabulary(directory: Path) -> Vocabulary:
    """Raises ModelError when the directory has no tokenizer with a chat template, or names no end token."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the tokenizers library raises bare Exception for a malformed file
        raise ModelError(f"{directory} has no tokenizer to read texts with: {str(error).splitlines()[0]}") from None
    if not tokenizer.chat_template:
        raise ModelError(f"{directory} has no chat template to write prompts with")
    text = config.get_text_config()
    ends = _ids(tokenizer.eos_token_id) | _ids(getattr(config, "eos_token_id", None)) | _generation_ends(directory)
    if not ends:
        raise ModelError(f"{directory} names no end token (eos_token_id)")
    limit = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    return Vocabulary(tokenizer, ends, int(text.vocab_size), limit)


def _generation_ends(directory: Path) -> frozenset[int]:
    path = directory / "generation_config.json"
    if not path.is_file():
        return frozenset()
    return _ids(json.loads(path.read_text(encoding="utf-8")).get("eos_token_id"))


def _ids(value: int | list[int] | None) -> frozenset[int]:
    if value is None:
        return frozenset()
    return frozenset(value if isinstance(value, list) else [value])
