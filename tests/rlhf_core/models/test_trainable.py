"""Policies that learn, in full or by LoRA: their reference, their samples and their files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import transformers

from rlhf_core.engine.engine import Engine
from rlhf_core.engine.sequence import GenerationRequest
from rlhf_core.errors import ModelError, SettingsError, TrainingError
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.lora import load_adapter, merge
from rlhf_core.models.lora_layers import lora_layers
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.trainable import Compute, Trainable, make_trainable
from rlhf_core.records import Sampling
from tests.rlhf_core.families import FAMILIES, make_family

# peft asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

INPUT = torch.tensor([[5, 6, 7, 8, 9, 200]])
LORA = LoraSettings(rank=4, alpha=12.0)
Load = Callable[[], LoadedPolicy]


@pytest.fixture
def load(tiny_model_dir: Path) -> Load:
    return lambda: load_policy(tiny_model_dir)


@torch.no_grad()
def logits(model: transformers.PreTrainedModel, compute: Compute = "float32") -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=compute == "bfloat16"):
        return model(INPUT).logits


@torch.no_grad()
def move(trainee: Trainable) -> None:
    """As a few optimizer steps would: every weight that learns, and no other."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trainee.parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_a_fresh_adapter_changes_no_bit_and_off_it_is_the_base_for_ever(load: Load) -> None:
    base = logits(load().model)
    trainee = make_trainable(load(), LORA)
    assert trainee.starts_as_reference
    assert torch.equal(logits(trainee.model), base)
    move(trainee)
    assert (logits(trainee.model) - base).abs().max() > 0.1
    with trainee.reference() as reference:
        assert torch.equal(logits(reference), base)
    assert (logits(trainee.model) - base).abs().max() > 0.1
    assert all(parameter.requires_grad for parameter in trainee.parameters)


def test_with_lora_the_terms_alone_learn_and_the_class_stays(load: Load) -> None:
    trainee = make_trainable(load(), LORA)
    assert type(trainee.model) is transformers.LlamaForCausalLM
    learning = {name for name, value in trainee.model.named_parameters() if value.requires_grad}
    assert learning == {name for name, _ in trainee.model.named_parameters() if ".lora_" in name}
    # 2 layers of 7 projections, two matrices each; the output layer has no term.
    assert len(learning) == 2 * 7 * 2
    assert not any("lm_head" in name for name in learning)


def test_a_reference_of_full_weights_is_a_frozen_copy(load: Load) -> None:
    base = logits(load().model)
    trainee = make_trainable(load())
    move(trainee)
    with trainee.reference() as reference:
        assert torch.equal(logits(reference), base)
        assert not any(parameter.requires_grad for parameter in reference.parameters())
    assert (logits(trainee.model) - base).abs().max() > 0.1


def test_a_reference_of_its_own_is_told_from_the_start(
    load: Load, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    other = load_policy(make_tiny_model(tmp_path / "other", seed=3))
    for lora in (None, LORA):
        assert make_trainable(load(), lora, reference=load()).starts_as_reference
        trainee = make_trainable(load(), lora, reference=other)
        assert not trainee.starts_as_reference
        with trainee.reference() as reference:
            assert reference is other.model


def test_what_cannot_be_trained_is_refused(load: Load) -> None:
    policy = load()
    with pytest.raises(TrainingError, match="another copy"):
        make_trainable(policy, reference=policy)
    with pytest.raises(ModelError, match="no projection named z_proj"):
        make_trainable(load(), LoraSettings(targets=("q_proj", "z_proj")))
    with pytest.raises(SettingsError, match="rank is 0"):
        LoraSettings(rank=0)
    with (
        pytest.raises(TrainingError, match="without a reference"),
        make_trainable(load(), with_reference=False).reference(),
    ):
        pass


def gaps_of_engine_and_trainer(trainee: Trainable, compute: Compute) -> torch.Tensor:
    """Distance of the engine's logprobs from those of the trainer's forward pass, of each token of sampled answers."""
    engine = Engine(trainee.policy, max_running=3, max_waiting=8, max_context=48)
    requests = [
        GenerationRequest(f"r{at}", tuple(range(5, 9 + at)), Sampling(max_tokens=12, seed=at), ignore_end=True)
        for at in range(5)
    ]
    gaps = []
    for sequence in engine.generate(requests):
        prompt = sequence.request.prompt_token_ids
        tokens = torch.tensor([*prompt, *sequence.token_ids])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=compute == "bfloat16"):
            scores = trainee.model(tokens[None]).logits[0, len(prompt) - 1 : -1].float().log_softmax(-1)
        ours = scores.gather(1, tokens[len(prompt) :, None])[:, 0]
        gaps.append((ours - torch.tensor(sequence.logprobs)).abs())
    return torch.cat(gaps)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
# A single token may be a fifth of a nat apart where bfloat16 is multiplied in hardware, but not many.
@pytest.mark.parametrize(("compute", "most", "mean"), [("float32", 1e-4, 1e-5), ("bfloat16", 0.3, 0.05)])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_samples_come_from_the_weights_as_they_learned(
    family: str,
    compute: Compute,
    most: float,
    mean: float,
    lora: LoraSettings | None,
    make_tiny_model: Callable[..., Path],
    tmp_path: Path,
) -> None:
    policy = load_policy(make_family(make_tiny_model, tmp_path / "model", FAMILIES[family]()))
    trainee = make_trainable(policy, lora, compute=compute)
    for _ in range(2):
        gaps = gaps_of_engine_and_trainer(trainee, compute)
        assert gaps.max() < most
        assert gaps.mean() < mean
        move(trainee)
        trainee.refresh()


def test_a_sampler_that_was_not_refreshed_shows(load: Load) -> None:
    trainee = make_trainable(load(), LORA)
    move(trainee)
    assert gaps_of_engine_and_trainer(trainee, "float32").max() > 0.1


def test_a_frozen_trunk_in_bfloat16_computes_what_autocast_would(load: Load) -> None:
    cast = make_trainable(load(), LORA, compute="bfloat16")
    whole = make_trainable(load(), LORA)
    weights = {each.weight.dtype for each in lora_layers(cast.model).values()}
    assert weights == {torch.bfloat16}
    assert all(parameter.dtype == torch.float32 for parameter in cast.parameters)
    move(cast)
    move(whole)
    assert torch.equal(logits(cast.model, "bfloat16"), logits(whole.model, "bfloat16"))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_saved_adapter_is_what_peft_and_the_server_load(
    family: str, make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    base_dir = make_family(make_tiny_model, tmp_path / "base", FAMILIES[family]())
    trainee = make_trainable(load_policy(base_dir), LORA)
    move(trainee)
    (tmp_path / "adapter").mkdir()
    trainee.save(tmp_path / "adapter")
    expected = logits(trainee.model)
    base = transformers.AutoModelForCausalLM.from_pretrained(base_dir, dtype=torch.float32)
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(theirs), expected, atol=1e-5, rtol=0)
    merged = load_policy(base_dir).model
    merge(merged, load_adapter(tmp_path / "adapter", merged))
    torch.testing.assert_close(logits(merged), expected, atol=1e-4, rtol=0)


def test_full_weights_are_saved_as_transformers_saves_them(load: Load, tmp_path: Path) -> None:
    trainee = make_trainable(load())
    move(trainee)
    trainee.save(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(logits(again), logits(trainee.model), atol=1e-6, rtol=0)
