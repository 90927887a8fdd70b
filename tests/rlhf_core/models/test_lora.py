"""Adapters made by peft, served beside shared weights: peft's own forward is the judge."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from rlhf_core.engine.engine import Engine, probe
from rlhf_core.errors import ModelError
from rlhf_core.models.adapted import load_adapted
from rlhf_core.models.load import LoadedPolicy, load_policy
from rlhf_core.models.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, merge
from tests.rlhf_core.engine.generation import alone, engine, plain_logits, request
from tests.rlhf_core.families import FAMILIES, make_family

# peft asks transformers by an older name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

MakeTinyModel = Callable[..., Path]
LLAMA_TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "lm_head"]


def make_adapter(
    base: Path, directory: Path, *, targets: list[str] | None = None, seed: int = 0, **options: Any
) -> Any:
    """An adapter with weights of its own for `base`, saved by peft; returns the peft model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = peft.LoraConfig(
        **{"r": 4, "lora_alpha": 12, "target_modules": targets or LLAMA_TARGETS, "task_type": "CAUSAL_LM", **options}
    )
    adapted = peft.get_peft_model(model, config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    return adapted.eval()


@pytest.fixture(scope="module")
def base_dir(make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("base") / "model", seed=4)


@pytest.fixture(scope="module")
def base(base_dir: Path) -> LoadedPolicy:
    return load_policy(base_dir, frozen=True)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def any_base_dir(
    request: pytest.FixtureRequest, make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of a base whose weights are stored, and so held, in either type."""
    place = tmp_path_factory.mktemp("any")
    return make_family(make_tiny_model, place, FAMILIES["llama"](), seed=4, dtype=request.param)


def answer_logprobs(policy: LoadedPolicy, prompt: tuple[int, ...]) -> tuple[list[int], list[float]]:
    sequence = engine(policy).generate([request("r", prompt, max_tokens=10)])[0]
    return sequence.token_ids, sequence.logprobs


@pytest.mark.parametrize(
    "options", [{}, {"use_rslora": True}, {"alpha_pattern": {"v_proj": 3}, "rank_pattern": {"q_proj": 2}}]
)
def test_an_adapter_beside_shared_weights_answers_as_peft_does(
    options: dict[str, Any], any_base_dir: Path, tmp_path: Path
) -> None:
    base = load_policy(any_base_dir, frozen=True)
    theirs = make_adapter(any_base_dir, tmp_path, **options)
    policy = load_adapted(tmp_path, base, policy_version=2)
    sequence = engine(policy).generate([request("r", (9, 8, 7), max_tokens=12)])[0]
    with torch.no_grad():
        logits = theirs(torch.tensor([[9, 8, 7, *sequence.token_ids]])).logits[0, 2:-1]
    assert sequence.token_ids == logits.argmax(-1).tolist()
    expected = logits.log_softmax(-1).amax(-1)
    assert torch.tensor(sequence.logprobs) == pytest.approx(expected.numpy(), abs=1e-4)
    assert sequence.token_ids != engine(base).generate([request("r", (9, 8, 7), max_tokens=12)])[0].token_ids
    probe(policy, [(9, 8, 7)])


@pytest.mark.parametrize(("family", "targets"), [("gpt2", ["c_attn", "c_proj", "c_fc"]), ("opt", ["q_proj", "fc1"])])
def test_families_without_a_fused_forward_take_adapters_too(
    family: str, targets: list[str], make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    directory = make_family(make_tiny_model, tmp_path / "base", FAMILIES[family]())
    theirs = make_adapter(directory, tmp_path / "adapter", targets=targets, fan_in_fan_out=family == "gpt2")
    policy = load_adapted(tmp_path / "adapter", load_policy(directory, frozen=True))
    sequence = engine(policy).generate([request("r", (9, 8, 7), max_tokens=12)])[0]
    with torch.no_grad():
        logits = theirs(torch.tensor([[9, 8, 7, *sequence.token_ids]])).logits[0, 2:-1]
    assert sequence.token_ids == logits.argmax(-1).tolist()


def test_adapters_share_every_weight_of_their_base_and_leave_it_alone(
    base: LoadedPolicy, base_dir: Path, tmp_path: Path
) -> None:
    before = answer_logprobs(base, (9, 8, 7))
    make_adapter(base_dir, tmp_path)
    policy = load_adapted(tmp_path, base)
    ours = {parameter.data_ptr() for parameter in policy.model.parameters()}
    assert ours == {parameter.data_ptr() for parameter in base.model.parameters()}
    assert answer_logprobs(policy, (9, 8, 7)) != before
    assert answer_logprobs(base, (9, 8, 7)) == before


def test_a_swap_between_adapters_keeps_each_answer_on_its_own(
    base: LoadedPolicy, base_dir: Path, tmp_path: Path
) -> None:
    policies = [base]
    for number in (1, 2):
        make_adapter(base_dir, tmp_path / str(number), seed=number)
        policies.append(load_adapted(tmp_path / str(number), base, policy_version=number))
    subject = Engine(base, max_running=4, max_waiting=8, max_context=128)
    sequences = []
    for policy in policies:
        if subject.active is not policy:
            subject.swap(policy)
        sequences.append(subject.submit(request(f"r{policy.policy_version}", (9, 8, 7), max_tokens=10)))
        subject.step()
        while subject.draining:
            subject.step()
    while subject.has_work:
        subject.step()
    for policy, sequence in zip(policies, sequences, strict=True):
        assert sequence.policy is policy
        assert sequence.token_ids == alone(policy, sequence)


def test_a_merged_adapter_is_the_same_policy_in_full_weights(
    base: LoadedPolicy, base_dir: Path, tmp_path: Path
) -> None:
    make_adapter(base_dir, tmp_path)
    sequence = engine(load_adapted(tmp_path, base)).generate([request("r", (9, 8, 7), max_tokens=10)])[0]
    merged = load_policy(base_dir)
    merge(merged.model, load_adapter(tmp_path, merged.model))
    expected = plain_logits(merged, sequence).log_softmax(-1).amax(-1)
    assert torch.tensor(sequence.logprobs) == pytest.approx(expected.numpy(), abs=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_dora": True}, "uses use_dora"),
        ({"bias": "all"}, "trains biases"),
        ({"peft_type": "LOHA"}, "is a LOHA adapter"),
        ({"modules_to_save": ["lm_head"]}, "uses modules_to_save"),
        ({"init_lora_weights": "pissa_niter_4"}, "was started with pissa_niter_4, which changes the base"),
        ({"init_lora_weights": "olora"}, "was started with olora"),
    ],
)
def test_an_adapter_that_is_more_than_low_rank_terms_is_refused_by_name(
    change: dict[str, Any], reason: str, base: LoadedPolicy, base_dir: Path, tmp_path: Path
) -> None:
    make_adapter(base_dir, tmp_path)
    config = json.loads((tmp_path / ADAPTER_CONFIG).read_text())
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=reason):
        load_adapted(tmp_path, base)


def test_an_adapter_that_does_not_fit_its_base_is_refused(base: LoadedPolicy, base_dir: Path, tmp_path: Path) -> None:
    make_adapter(base_dir, tmp_path)
    sound = load_file(tmp_path / ADAPTER_WEIGHTS)
    name = next(iter(sound))
    for tensors, reason in (
        ({**sound, name: sound[name][:, :-1].contiguous()}, "weights of shape"),
        ({**sound, name: torch.full_like(sound[name], torch.nan)}, "not finite"),
        ({key: tensor for key, tensor in sound.items() if key != name}, "half is missing"),
        ({name.replace("layers.0", "layers.7"): sound[name]}, "does not have"),
        ({"base_model.model.lm_head.weight": sound[name]}, "not a low-rank term"),
        ({}, "holds no LoRA weights"),
    ):
        save_file(tensors, tmp_path / ADAPTER_WEIGHTS)
        with pytest.raises(ModelError, match=reason):
            load_adapted(tmp_path, base)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cannot be read"):
        load_adapted(tmp_path, base)
