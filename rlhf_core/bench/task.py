"""What is trained on in the bench: random models and made-up texts, the same for everyone who takes part.

Speed depends on shapes and not on what weights have learned. Every word is one token, so lengths are exact in any
program that reads the texts. Pairs can be learned from: the chosen answer has more of the good words.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SMALL: Final[Mapping[str, Any]] = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
}
"""5.5 million weights: the model of the PPO, reward and supervised figures."""
SHAPE: Final[Mapping[str, Any]] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
"""That of SmolLM2-135M: the model of the LoRA figure."""

PROMPT_TOKENS: Final = 32
RESPONSE_TOKENS: Final = 48
ROLLOUTS: Final = 64
EPOCHS: Final = 4
MINIBATCHES: Final = 4
UPDATES: Final = 4
PAD, END, USER, ASSISTANT = "<pad>", "<end>", "<user>", "<assistant>"
GOOD_WORDS: Final = 400
"""The first so many words are good ones."""
TRAIN_PAIRS, HELD_OUT_PAIRS = 512, 1024
TRAIN_ROWS: Final = 768
BATCH: Final = 16
"""Pairs, or rows, of one optimizer step."""


def make_model(directory: Path, shape: Mapping[str, Any]) -> Path:
    """A Llama of random weights in float32 with a tokenizer of words, as a transformers directory; always the same."""
    tokenizer = make_tokenizer(shape["vocab_size"])
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**shape, **special))
    model.generation_config.update(do_sample=True, temperature=1.0)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def make_tokenizer(vocab_size: int) -> PreTrainedTokenizerFast:
    """Words `w0`, `w1`, ... between spaces, and four special tokens."""
    words = [PAD, END, USER, ASSISTANT, *(f"w{number}" for number in range(vocab_size - 4))]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, eos_token=END)
    fast.chat_template = (
        "{%- for message in messages -%}"
        "{{- '<' ~ message['role'] ~ '> ' ~ message['content'] ~ ' ' -}}"
        "{%- if message['role'] == 'assistant' -%}{{- '<end> ' -}}{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{- '<assistant> ' -}}{%- endif -%}"
    )
    return fast


def prompts(count: int, vocab_size: int, tokens: int = PROMPT_TOKENS) -> list[tuple[int, ...]]:
    """Token ids of `count` prompts of exactly `tokens` words."""
    draw = random.Random(1)
    return [tuple(draw.randrange(4, vocab_size) for _ in range(tokens)) for _ in range(count)]


def pairs(count: int, seed: int) -> list[dict[str, str]]:
    """Rows of prompt (20 words), chosen and rejected (about 40 words each): about 120 tokens as two whole texts."""
    draw = random.Random(seed)
    return [_pair(draw) for _ in range(count)]


def _pair(draw: random.Random) -> dict[str, str]:
    prompt = _words(draw, 20, 0.1)
    better, worse = sorted((draw.uniform(0.0, 0.5), draw.uniform(0.0, 0.5)), reverse=True)
    lengths = draw.randint(32, 46), draw.randint(32, 46)
    return {
        "prompt": prompt,
        "chosen": _words(draw, lengths[0], better),
        "rejected": _words(draw, lengths[1], worse),
    }


def _words(draw: random.Random, count: int, good: float) -> str:
    """`count` words, each a good one with probability `good`."""
    every = SMALL["vocab_size"] - 4
    return " ".join(
        f"w{draw.randrange(GOOD_WORDS) if draw.random() < good else draw.randrange(GOOD_WORDS, every)}"
        for _ in range(count)
    )


def demonstrations(count: int) -> list[dict[str, str]]:
    """Rows of prompt and completion of 28 to 62 tokens together, about 45."""
    draw = random.Random(3)
    rows = []
    for _ in range(count):
        prompt, answer = draw.randint(12, 28), draw.randint(13, 31)
        rows.append({"prompt": _words(draw, prompt, 0.2), "completion": _words(draw, answer, 0.2)})
    return rows
