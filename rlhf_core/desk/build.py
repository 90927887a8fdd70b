"""Builds the bundled desk model: demonstrations, tokenizer, weights, evaluation, manifest. This is what `make
desk` runs.

    python -m rlhf_core.desk.build [--out DIR] [--seed N] [--recipe shipped|tiny]

The result is a plain `transformers` directory plus `desk.json`. It is written aside and moved into place whole.
The same seed, number of threads and torch version give the same weights.
"""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from rlhf_core.checkpoints import file_sha256
from rlhf_core.desk.demonstrations import Demonstration, DeskPrompt, demonstrations, held_out_prompts
from rlhf_core.desk.grammar import grammar_hash
from rlhf_core.desk.head_start import plant_copying_heads
from rlhf_core.desk.quality import judge_answers
from rlhf_core.desk.recipe import (
    CHECKPOINT,
    DATA_HEAD,
    MANIFEST_NAME,
    RECIPES,
    DeskManifest,
    DeskRecipe,
    DeskSample,
    FurtherRound,
    canonical_sha256,
)
from rlhf_core.desk.tokenizer import train_tokenizer
from rlhf_core.learning.sft import OnProgress, SftProgress, SftResult, encode_conversations, train_supervised
from rlhf_core.learning.sft_settings import SftSettings

ANSWERS_PER_BATCH = 50
SAMPLES_KEPT = 12
CURVE_POINTS = 100

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Answers:
    """What a model said to a list of prompts, in their order."""

    texts: tuple[str, ...]
    ended: tuple[bool, ...]
    """Whether the end token came before the limit."""


def build_desk(recipe: DeskRecipe, out: Path, *, say: Say) -> DeskManifest:
    """Build the model of `recipe` into the directory `out`, replacing what is there, and return its manifest."""
    data = list(demonstrations(recipe.demonstrations, recipe.seed))
    tokenizer = train_tokenizer(
        (message.content for each in data[: recipe.tokenizer_demonstrations] for message in each.messages),
        recipe.vocab_size,
        recipe.context_tokens,
    )
    torch.manual_seed(recipe.seed)
    model = new_model(recipe, tokenizer)
    say(f"{len(data)} demonstrations, {len(tokenizer)} tokens, {model.num_parameters()} parameters")
    result = _train(model, tokenizer, data, recipe.training, on_progress=_progress_lines(say))
    for number, further in enumerate(recipe.further, start=1):
        more = draw_round(further, recipe.seed + number)
        more_result = _train(model, tokenizer, more, further.training, on_progress=_progress_lines(say))
        data = data + more
        result = SftResult(result.losses + more_result.losses, result.tokens + more_result.tokens)
    sharpen(model, recipe.sharpness)
    prompts = held_out_prompts(recipe.evaluation_prompts, recipe.seed)
    answers = answer_prompts(
        model,
        tokenizer,
        prompts,
        recipe.seed,
        temperature=recipe.temperature,
        max_new_tokens=recipe.max_new_tokens,
    )
    with _written_aside(out) as aside:
        model.save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        manifest = _manifest(recipe, data, model, result, prompts, answers, aside)
        written = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        (aside / MANIFEST_NAME).write_bytes(written + b"\n")
    return manifest


def draw_round(further: FurtherRound, seed: int) -> list[Demonstration]:
    """The conversations of a later round."""
    drawn = list(demonstrations(further.demonstrations, seed))
    if not further.numbers:
        return drawn
    return [each for at, each in enumerate(drawn) if at % 4 == 0 or _answers_hold_a_number(each)]


def _answers_hold_a_number(conversation: Demonstration) -> bool:
    answers = (message.content for message in conversation.messages if message.role == "assistant")
    return any(character.isdigit() for answer in answers for character in answer)


@torch.no_grad()
def sharpen(model: LlamaForCausalLM, sharpness: float) -> None:
    """Multiply all logits by `sharpness`, through the gain of the norm before them."""
    model.model.norm.weight.mul_(sharpness)


def new_model(recipe: DeskRecipe, tokenizer: PreTrainedTokenizerBase) -> LlamaForCausalLM:
    """A Llama of the recipe's size with fresh weights from torch's current random state, and heads that already
    copy."""
    config = LlamaConfig(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        intermediate_size=recipe.mlp_size,
        max_position_embeddings=recipe.context_tokens,
        rope_parameters={"rope_type": "default", "rope_theta": recipe.rope_theta},
        attention_bias=True,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    plant_copying_heads(model)
    model.generation_config.do_sample = True
    model.generation_config.temperature = recipe.temperature
    return model


@torch.inference_mode()
def answer_prompts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[DeskPrompt],
    seed: int,
    *,
    temperature: float = 1.0,
    max_new_tokens: int = 128,
) -> Answers:
    """Sample one answer to each prompt with `generate()`, from the whole distribution at `temperature`.

    Prompts of similar length share a batch, padded on the left. Reseeds torch's global generator, which is the
    only one `generate()` draws from.
    """
    torch.manual_seed(seed)
    conversations = [[{"role": m.role, "content": m.content} for m in prompt.messages] for prompt in prompts]
    encoded = [
        list(tokenizer.apply_chat_template(each, add_generation_prompt=True, return_dict=True)["input_ids"])
        for each in conversations
    ]
    order = sorted(range(len(encoded)), key=lambda at: len(encoded[at]))
    answered: dict[int, list[int]] = {}
    for start in range(0, len(order), ANSWERS_PER_BATCH):
        part = order[start : start + ANSWERS_PER_BATCH]
        rows = _sample_batch(model, tokenizer, [encoded[at] for at in part], temperature, max_new_tokens)
        answered.update(zip(part, rows, strict=True))
    responses = [answered[at] for at in range(len(encoded))]
    ended = tuple(tokenizer.eos_token_id in response for response in responses)
    return Answers(tuple(tokenizer.batch_decode(responses, skip_special_tokens=True)), ended)


def _sample_batch(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[list[int]],
    temperature: float,
    max_new_tokens: int,
) -> list[list[int]]:
    batch = tokenizer.pad({"input_ids": list(encoded)}, padding_side="left", return_tensors="pt").to(model.device)
    rows = model.generate(
        **batch, do_sample=True, temperature=temperature, top_k=0, top_p=1.0, max_new_tokens=max_new_tokens
    )
    responses: list[list[int]] = rows[:, batch["input_ids"].shape[1] :].tolist()
    return responses


def _train(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: Sequence[Demonstration],
    settings: SftSettings,
    on_progress: OnProgress,
) -> SftResult:
    conversations = [[{"role": m.role, "content": m.content} for m in each.messages] for each in data]
    examples = encode_conversations(tokenizer, conversations)
    return train_supervised(model, examples, settings, on_progress=on_progress)


def _progress_lines(say: Say) -> OnProgress:
    """A line per fiftieth of the run."""
    started = time.monotonic()

    def on_progress(progress: SftProgress) -> None:
        if progress.minibatch % max(1, progress.minibatches // 50) and progress.minibatch != progress.minibatches:
            return
        speed = progress.tokens / (time.monotonic() - started)
        say(
            f"minibatch {progress.minibatch}/{progress.minibatches}  loss {progress.loss:.4f}  "
            f"gradient norm {progress.gradient_norm:.2f}  {speed:.0f} tokens/s"
        )

    return on_progress


def _manifest(
    recipe: DeskRecipe,
    data: Sequence[Demonstration],
    model: PreTrainedModel,
    result: SftResult,
    prompts: Sequence[DeskPrompt],
    answers: Answers,
    saved: Path,
) -> DeskManifest:
    quality = judge_answers(prompts, answers.texts, answers.ended)
    shown = list(zip(prompts, answers.texts, strict=True))[:SAMPLES_KEPT]
    return DeskManifest(
        recipe=recipe,
        recipe_hash=recipe.hash,
        grammar_hash=grammar_hash(),
        data_sha256=canonical_sha256(data),
        data_head_sha256=canonical_sha256(data[:DATA_HEAD]),
        weights_sha256=file_sha256(saved / "model.safetensors"),
        parameters=model.num_parameters(),
        tokens=result.tokens,
        losses=_curve(result.losses),
        quality=msgspec.to_builtins(quality),
        samples=tuple(DeskSample(prompt.messages[-1].content, text) for prompt, text in shown),
        versions={"torch": str(torch.__version__), "transformers": transformers.__version__},
    )


def _curve(losses: Sequence[float]) -> tuple[float, ...]:
    """Means of at most `CURVE_POINTS` equal stretches of the run."""
    size = -(-len(losses) // CURVE_POINTS)
    stretches = [losses[start : start + size] for start in range(0, len(losses), size)]
    return tuple(round(sum(stretch) / len(stretch), 4) for stretch in stretches)


@contextmanager
def _written_aside(out: Path) -> Iterator[Path]:
    """A new directory that becomes `out` when the block ends well, and vanishes when it does not."""
    out.parent.mkdir(parents=True, exist_ok=True)
    aside, old = (Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}-")) for _ in range(2))
    try:
        yield aside
        aside.chmod(0o755)
        if out.exists():
            # A rename replaces only an empty directory, so the old one has to step away first.
            out.rename(old)
        aside.rename(out)
    finally:
        for leftover in (aside, old):
            shutil.rmtree(leftover, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m rlhf_core.desk.build", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=CHECKPOINT, help="directory to write (default: the shipped one)")
    parser.add_argument("--seed", type=int, help="replace the recipe's seed")
    parser.add_argument("--recipe", choices=sorted(RECIPES), default="shipped")
    options = parser.parse_args(arguments)
    recipe = RECIPES[options.recipe]
    if options.seed is not None:
        training = msgspec.structs.replace(recipe.training, seed=options.seed)
        recipe = msgspec.structs.replace(recipe, seed=options.seed, training=training)
    manifest = build_desk(recipe, options.out, say=lambda line: print(line, flush=True))
    print(msgspec.json.format(msgspec.json.encode(manifest.quality), indent=1).decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
