"""How a model reads texts: its tokenizer, template, end tokens and context, without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoConfig, GenerationConfig, PreTrainedTokenizerBase

from rlhf_core.errors import ModelError
from rlhf_core.models.load import end_tokens, load_tokenizer


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
    tokenizer = load_tokenizer(directory)
    try:
        config: Any = AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        settings = directory / "generation_config.json"
        generation = GenerationConfig.from_pretrained(directory, local_files_only=True) if settings.is_file() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{directory} has no configuration that can be read: {str(error).splitlines()[0]}") from None
    text = config.get_text_config()
    limit = int(getattr(text, "max_position_embeddings", None) or 1 << 30)
    return Vocabulary(tokenizer, end_tokens(directory, generation, config, tokenizer), int(text.vocab_size), limit)
