"""The models of the bench: the bundled desk, a random Llama of a small chat model's shape, or any other.

Speed depends on shapes and not on what the weights have learned, so random ones serve and nothing is fetched. The
tokenizer is a real one, trained on made-up words: every id that may be sampled has a text, which streaming needs.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase

from rlhf_core.desk.tokenizer import train_tokenizer
from rlhf_core.models.load import fetch_model, load_policy, render_prompt
from rlhf_core.models.placement import choose_dtype
from rlhf_core.records import Message

_SPOKEN = (
    "about account after again answer arrive away back because before bill black book box bring broken call cancel "
    "card change charge check city close code cold come contract country credit customer date day delay deliver "
    "detail device door down early email empty end enough error even every explain fast find first fix follow form "
    "free friend front full gift give glass good green group half hand hard have heavy help here hold home hour house "
    "idea invoice item just keep kind label large last late learn leave left letter light like line list little live "
    "long look lost low mail main make many match mean meet message minute money month more morning move much name "
    "near need never new next night nothing notice number offer office often old only open order other over owner "
    "package page paper part pass pay people phone place plan please point post price problem question quick quiet "
    "rain read ready really receive red refund repair reply return right road room router same school screen second "
    "send service several ship short shop show signal since size slow small some soon speak speed stand start still "
    "stop store street support sure system table take talk tell thank thing think ticket time today tomorrow town "
    "track travel turn under until update use very visit wait walk want warm water week well what when where which "
    "white whole will window wire with without word work world write wrong year yellow yesterday"
)
WORDS: Final = tuple(_SPOKEN.split())

SHAPE: Final[Mapping[str, Any]] = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "rope_theta": 100_000.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
}
"""That of SmolLM2-135M, with a shorter context."""


@dataclass(frozen=True)
class BenchModel:
    """A model directory as every server of the bench is given it, and what the bench must know of it."""

    name: str
    directory: Path
    tokenizer: PreTrainedTokenizerBase
    parameters: int
    dtype: str
    """What all servers are asked to compute in: what the weights on disk are, or float32 where this machine does not
    multiply bfloat16."""
    served_dtype: str
    """What Attune computes in, asked for nothing."""
    max_context: int


def prepare_model(name: str, place: Path) -> BenchModel:
    """Make or copy the model called `desk`, `shape`, a directory or a hub id, under `place`."""
    directory = place / "model"
    if name == "shape":
        make_model(directory, SHAPE, dtype=torch.bfloat16)
    else:
        fetch_model(name, directory)
    policy = load_policy(directory)
    served = choose_dtype("auto", torch.device("cpu"))
    config = json.loads((directory / "config.json").read_text())
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    return BenchModel(
        name=name,
        directory=directory,
        tokenizer=policy.tokenizer,
        parameters=sum(weights.numel() for weights in policy.model.parameters()),
        dtype="float32" if served == torch.float32 else stored,
        served_dtype=str(served).removeprefix("torch."),
        max_context=policy.max_context,
    )


def make_model(directory: Path, shape: Mapping[str, Any], *, dtype: torch.dtype, seed: int = 0) -> Path:
    """A Llama of random weights with a trained tokenizer, as a transformers directory. The same for the same seed."""
    tokenizer = train_tokenizer(_made_up_texts(seed), shape["vocab_size"], shape["max_position_embeddings"])
    fields = dict(shape)
    rope = {"rope_type": "default", "rope_theta": fields.pop("rope_theta")}
    special = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(LlamaConfig(**fields, **special, rope_parameters=rope))
    model.generation_config.update(do_sample=True, temperature=1.0)
    model.to(dtype).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def _made_up_texts(seed: int) -> Iterator[str]:
    """Enough words of two to four syllables that a byte-pair tokenizer finds as many merges as it is asked for.

    The words of prompts come often, so that each is one token.
    """
    draw = random.Random(seed)
    syllables = [
        start + vowel + end for start in "bcdfghjklmnprstvwz" for vowel in "aeiou" for end in ("", "n", "r", "s")
    ]
    for _ in range(4_000):
        yield " ".join(WORDS)
    for _ in range(6_000):
        yield " ".join("".join(draw.choices(syllables, k=draw.randint(2, 4))) for _ in range(10))


def without_end(model: BenchModel, directory: Path) -> Path:
    """A copy whose answers never end by themselves, sampled without cuts, for what takes neither from a request."""
    fetch_model(str(model.directory), directory)
    changes: dict[str, dict[str, object]] = {
        "config.json": {"eos_token_id": None},
        "generation_config.json": {"eos_token_id": None, "do_sample": True, "top_k": 0},
    }
    for name, fields in changes.items():
        path = directory / name
        if path.is_file():
            path.write_text(json.dumps(json.loads(path.read_text()) | fields, indent=1))
    return directory


def prompts(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int) -> Iterator[str]:
    """Texts without end whose rendered prompts have about `tokens` tokens; they differ from their first words on.

    Words are counted once, not each text: the load generator draws prompts while it measures.
    """
    draw = random.Random(seed)
    spoken = tokenizer([f" {word}" for word in WORDS], add_special_tokens=False)["input_ids"]
    lengths = {word: len(ids) for word, ids in zip(WORDS, spoken, strict=True)}
    frame = len(render_prompt(tokenizer, [Message("user", WORDS[0])])) - lengths[WORDS[0]]
    while True:
        yield " ".join(_drawn(draw, lengths, tokens - frame))


def _drawn(draw: random.Random, lengths: Mapping[str, int], room: int) -> Iterator[str]:
    while (room := room - lengths[word := draw.choice(WORDS)]) >= 0:
        yield word
