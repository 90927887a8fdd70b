"""The constants of the bundled desk model, and the record of how the shipped one came out. Free of torch.

The recipe is data: its hash stands in the shipped manifest, and a test compares it with the code, so neither can
change alone.
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

import msgspec

from rlhf_core.learning.sft_settings import SftSettings

CHECKPOINT: Final = Path(__file__).parent / "checkpoint"
"""The shipped model: a directory `transformers` loads, plus the manifest."""

MANIFEST_NAME: Final = "desk.json"


class FurtherRound(msgspec.Struct, frozen=True, kw_only=True):
    """More training on conversations of its own, drawn with the recipe's seed plus the round's number."""

    demonstrations: int
    """How many conversations are drawn."""
    numbers: bool = False
    """Keep those whose answers hold a number, and every fourth of the others: rare number tokens take longest."""
    training: SftSettings


class DeskRecipe(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that decides the desk model, given the grammar."""

    seed: int
    """Draws the demonstrations, the initial weights, the order of training and the evaluation's samples."""
    demonstrations: int
    """How many conversations are generated and trained on."""
    tokenizer_demonstrations: int
    """How many of the first of them the tokenizer learns its merges from."""
    vocab_size: int
    """Small, so that made-up names stay several tokens and are copied rather than remembered."""
    hidden_size: int
    layers: int
    heads: int
    """Of 64 dimensions or so; keys and values have as many, which the planted heads need."""
    mlp_size: int
    rope_theta: float = 100_000.0
    """Base of the rotary frequencies; large, so that half of them turn slowly enough to match content by."""
    context_tokens: int = 1024
    """Longest prompt and answer together that the model accepts."""
    training: SftSettings
    further: tuple["FurtherRound", ...] = ()
    """Rounds after the first, on fresh conversations."""
    sharpness: float = 1.0
    """Factor on the final norm's gain when training ends: sampling at temperature 1 is then sampling at 1 / sharpness
    of what was learned, which trims the noise that a short training leaves in the tail of the distribution."""
    evaluation_prompts: int
    """Held-out prompts answered at the end, each once."""
    temperature: float = 1.0
    """Of the evaluation's samples; 1 because that is what is served, and what PPO's logprobs assume."""
    max_new_tokens: int = 128
    """Longest evaluated answer; one that reaches it did not end."""

    @property
    def hash(self) -> str:
        """Sha256 of the recipe's canonical JSON."""
        return canonical_sha256([self])


_FIRST: Final = SftSettings(
    learning_rate=2e-3,
    warmup_share=0.03,
    weight_decay=0.05,
    adam_eps=1e-8,
    row_tokens=320,
    rows_per_minibatch=4,
    rows_per_microbatch=4,
    prompt_weight=0.2,
    seed=20260,
)
_FURTHER: Final = msgspec.structs.replace(
    _FIRST, learning_rate=1.2e-3, rows_per_minibatch=6, rows_per_microbatch=6, prompt_weight=0.0, seed=20261
)

SHIPPED: Final = DeskRecipe(
    seed=20260,
    demonstrations=60_000,
    tokenizer_demonstrations=8_000,
    vocab_size=2560,
    hidden_size=192,
    layers=4,
    heads=3,
    mlp_size=512,
    training=_FIRST,
    further=(
        FurtherRound(demonstrations=50_000, training=_FURTHER),
        FurtherRound(
            demonstrations=46_000,
            numbers=True,
            training=msgspec.structs.replace(_FURTHER, learning_rate=1e-3, seed=20262),
        ),
    ),
    sharpness=1.06,
    evaluation_prompts=300,
)
"""What `make desk` builds and the repository carries."""

TINY: Final = DeskRecipe(
    seed=1,
    demonstrations=96,
    tokenizer_demonstrations=96,
    vocab_size=1536,
    hidden_size=32,
    layers=2,
    heads=2,
    mlp_size=64,
    training=SftSettings(learning_rate=3e-3, row_tokens=768, rows_per_minibatch=4, rows_per_microbatch=4, seed=1),
    further=(
        FurtherRound(
            demonstrations=32,
            numbers=True,
            training=SftSettings(
                learning_rate=1e-3, row_tokens=768, rows_per_minibatch=4, rows_per_microbatch=4, seed=2
            ),
        ),
    ),
    sharpness=1.1,
    evaluation_prompts=4,
    max_new_tokens=16,
)
"""The same path in seconds, for tests. It learns next to nothing."""

RECIPES: Final[Mapping[str, DeskRecipe]] = MappingProxyType({"shipped": SHIPPED, "tiny": TINY})


class DeskSample(msgspec.Struct, frozen=True):
    """One evaluated answer, for reading."""

    prompt: str
    """The last user message."""
    answer: str


class DeskManifest(msgspec.Struct, frozen=True, kw_only=True):
    """What `desk.json` holds: written by the build beside the weights, read by people and by the tests."""

    recipe: DeskRecipe
    recipe_hash: str
    grammar_hash: str
    """Of the grammar the demonstrations came from."""
    data_sha256: str
    """Of all demonstrations of all rounds, in order, as canonical JSON lines."""
    data_head_sha256: str
    """The same of the first `DATA_HEAD`, quick enough to check in a test."""
    weights_sha256: str
    """Of `model.safetensors`."""
    parameters: int
    tokens: int
    """Tokens trained on."""
    losses: tuple[float, ...]
    """Response loss in nats, averaged over each hundredth of the run."""
    quality: Mapping[str, object]
    """`DeskQuality` of the held-out answers."""
    samples: tuple[DeskSample, ...]
    versions: Mapping[str, str]
    """Of torch and transformers."""


DATA_HEAD: Final = 200


def canonical_sha256(records: Iterable[object]) -> str:
    """Sha256 over records as JSON lines with sorted keys."""
    digest = hashlib.sha256()
    for record in records:
        digest.update(msgspec.json.encode(record, order="sorted") + b"\n")
    return digest.hexdigest()
