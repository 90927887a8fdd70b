"""The written-out halves of a layer against the layer's own modules, in values and gradients; and where they stand
back. That both are the model: test_documents.py."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor, nn

from rlhf_core.models import trunk as subject
from rlhf_core.models.documents import Documents, run_documents
from rlhf_core.models.layer_halves import can_halve
from rlhf_core.models.load import load_policy
from rlhf_core.models.lora import Adapter, with_adapter
from rlhf_core.models.lora_layers import add_lora
from rlhf_core.models.lora_settings import LoraSettings
from rlhf_core.models.projection import LowRank
from tests.rlhf_core.families import DECODER, FAMILIES, make_family

MakeTinyModel = Callable[..., Path]
CPU = torch.device("cpu")
LENGTHS = (7, 20, 4, 2)
TOKENS = torch.randint(5, 300, (sum(LENGTHS),), generator=torch.Generator().manual_seed(2))
BIASED = transformers.LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True)


def trunk_of(make_tiny_model: MakeTinyModel, path: Path, config: transformers.PretrainedConfig) -> nn.Module:
    trunk: nn.Module = load_policy(make_family(make_tiny_model, path, config, seed=5)).model.base_model
    for name, parameter in trunk.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(3))
    return trunk


def learned(trunk: nn.Module, *, half: bool, wanted: Tensor | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """States of the documents' tokens, and the gradient of each parameter."""
    trunk.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        states = run_documents(trunk, TOKENS, Documents(LENGTHS, CPU), wanted).float()
    (states * torch.randn(states.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    return states.detach(), {name: each.grad for name, each in trunk.named_parameters() if each.grad is not None}


def by_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "can_halve", lambda *_: False)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral", "smollm3", "biased"])
def test_values_and_gradients_are_those_of_the_modules(
    family: str, make_tiny_model: MakeTinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = BIASED if family == "biased" else FAMILIES[family]()
    trunk = trunk_of(make_tiny_model, tmp_path, config)
    assert all(can_halve(layer, torch.zeros(1, 32)) for layer in trunk.layers)
    states, gradients = learned(trunk, half=False)
    by_modules(monkeypatch)
    expected, wanted = learned(trunk, half=False)
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    assert gradients.keys() == wanted.keys() == dict(trunk.named_parameters()).keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, wanted[name], atol=1e-5 * float(wanted[name].abs().max()), rtol=1e-3)


@pytest.mark.parametrize("wanted", [None, torch.tensor([3, 8, 30])])
def test_in_bfloat16_they_are_as_close_to_float32_as_the_modules(
    wanted: Tensor | None, make_tiny_model: MakeTinyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = trunk_of(make_tiny_model, tmp_path, BIASED)
    ours = learned(trunk, half=True, wanted=wanted)
    by_modules(monkeypatch)
    theirs, exact = (learned(trunk, half=half, wanted=wanted) for half in (True, False))

    def error(found: tuple[Tensor, dict[str, Tensor]]) -> tuple[float, float]:
        gaps = [(found[1][name] - each).norm() / each.norm() for name, each in exact[1].items() if each.norm() > 0]
        return float((found[0] - exact[0]).abs().mean()), float(torch.stack(gaps).mean())

    for own, other in zip(error(ours), error(theirs), strict=True):
        assert 0 < own < 1.25 * other
    assert all(each.dtype == torch.float32 for each in ours[1].values())


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    "learning", ["self_attn.k_proj.bias", "self_attn.q_proj.weight", "mlp.up_proj.weight", "mlp.down_proj.bias"]
)
def test_what_is_frozen_gets_no_gradient_and_the_rest_the_same(
    learning: str, half: bool, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    trunk = trunk_of(make_tiny_model, tmp_path, BIASED)
    _, wanted = learned(trunk, half=half)
    trunk.requires_grad_(False)
    trunk.layers[0].get_parameter(learning).requires_grad_()
    _, gradients = learned(trunk, half=half)
    name = f"layers.0.{learning}"
    assert gradients.keys() == {name}
    # Side by side or alone, a product in bfloat16 is rounded once.
    torch.testing.assert_close(gradients[name], wanted[name], atol=1e-5, rtol=1e-2 if half else 1e-5)


def test_a_second_pass_backward_adds_the_same_again(make_tiny_model: MakeTinyModel, tmp_path: Path) -> None:
    trunk = trunk_of(make_tiny_model, tmp_path, BIASED)
    with torch.autocast("cpu", torch.bfloat16):
        total = run_documents(trunk, TOKENS, Documents(LENGTHS, CPU)).square().sum()
    total.backward(retain_graph=True)
    once = [each.grad.clone() for each in trunk.parameters()]
    total.backward()
    assert all(torch.equal(each.grad, 2 * one) for each, one in zip(trunk.parameters(), once, strict=True))


@pytest.mark.parametrize("name", ["self_attn.v_proj.weight", "mlp.gate_proj.weight"])
def test_weights_that_change_before_their_gradient_are_refused(
    name: str, make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    trunk = trunk_of(make_tiny_model, tmp_path, BIASED)
    total = run_documents(trunk, TOKENS, Documents(LENGTHS, CPU)).sum()
    with torch.no_grad():
        trunk.layers[1].get_parameter(name).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


def test_a_pass_backward_in_the_context_of_the_forward_is_the_same(
    make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    trunk = trunk_of(make_tiny_model, tmp_path, BIASED)
    found = []
    for inside in (False, True):
        trunk.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16):
            total = run_documents(trunk, TOKENS, Documents(LENGTHS, CPU)).square().sum()
            if inside:
                total.backward()
        if not inside:
            total.backward()
        found.append([each.grad for each in trunk.parameters()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_weights_held_in_bfloat16_are_those_that_the_context_makes(
    make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    trunk = trunk_of(make_tiny_model, tmp_path, BIASED).requires_grad_(False)
    held = copy.deepcopy(trunk)
    for module in held.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        one, other = (run_documents(each, TOKENS, Documents(LENGTHS, CPU)) for each in (trunk, held))
    assert torch.equal(one, other)


def test_nothing_of_a_pass_is_held_once_it_went_backward(make_tiny_model: MakeTinyModel, tmp_path: Path) -> None:
    trunk = trunk_of(make_tiny_model, tmp_path, transformers.LlamaConfig(**DECODER))
    with torch.autocast("cpu", torch.bfloat16):
        states = run_documents(trunk, TOKENS, Documents(LENGTHS, CPU))
    total = states.sum()

    total.backward()
    assert total.grad_fn is not None  # the pass is still there
    held = [each for each in gc.get_objects() if type(each) is Tensor and each.dtype == torch.bfloat16]
    assert not held


def test_they_stand_back_where_something_else_is_computed(make_tiny_model: MakeTinyModel, tmp_path: Path) -> None:
    x = torch.zeros(1, 32)
    plain = trunk_of(make_tiny_model, tmp_path / "plain", transformers.LlamaConfig(**DECODER)).layers[0]
    assert can_halve(plain, x)
    assert not can_halve(plain, x.bfloat16())
    other = transformers.LlamaConfig(**DECODER, hidden_act="gelu")
    assert not can_halve(trunk_of(make_tiny_model, tmp_path / "gelu", other).layers[0], x)
    plain.mlp.up_proj.weight.data = plain.mlp.up_proj.weight.data.bfloat16()
    assert not can_halve(plain, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert can_halve(plain, x)
    hooked = load_policy(make_family(make_tiny_model, tmp_path / "hooked", transformers.LlamaConfig(**DECODER))).model
    term = LowRank(torch.ones(32, 1), torch.ones(1, 64))
    beside = with_adapter(hooked, Adapter({"model.layers.0.mlp.up_proj": term}))
    assert [can_halve(layer, x) for layer in beside.model.layers[:2]] == [False, True]
    hooked.model.layers[0].mlp.forward = lambda given: given
    assert not can_halve(hooked.model.layers[0], x)
    adapted = load_policy(make_family(make_tiny_model, tmp_path / "lora", transformers.LlamaConfig(**DECODER)))
    add_lora(adapted.model, LoraSettings(), 0)
    assert not can_halve(adapted.model.base_model.layers[0], x)
