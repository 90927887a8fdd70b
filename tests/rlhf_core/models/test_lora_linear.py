"""The leaner LoRA layer against peft's own forward: values and gradients."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from rlhf_core.models.lora_linear import LowRankLinear, lean


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.projection = nn.Linear(6, 5, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x)


def made(bias: bool, **settings: object) -> Block:
    torch.manual_seed(0)
    block = Block(bias).requires_grad_(False)
    inject_adapter_in_model(LoraConfig(**{"r": 2, "lora_alpha": 6, "target_modules": ["projection"]} | settings), block)
    nn.init.normal_(block.projection.lora_B["default"].weight)
    return block.double()


def gradients(block: Block, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    y = block(x)
    y.square().sum().backward()
    layer = block.projection
    return [y.detach(), x.grad, layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad]


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_peft(bias: bool) -> None:
    theirs = made(bias)
    ours = copy.deepcopy(theirs)
    lean(ours.projection)
    assert type(ours.projection) is LowRankLinear
    x = torch.randn(2, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for found, wanted in zip(gradients(ours, x), gradients(theirs, x), strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def test_the_gradient_is_that_of_finite_differences() -> None:
    block = made(True)
    lean(block.projection)
    layer = block.projection
    terms = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, *_: layer(x), (x, *terms))


def test_an_input_without_a_gradient_needs_none() -> None:
    block = made(False)
    lean(block.projection)
    block(torch.ones(3, 6, dtype=torch.float64)).sum().backward()
    assert block.projection.lora_A["default"].weight.grad is not None


def test_with_the_adapter_off_or_merged_it_is_the_base_and_peft_s_sum() -> None:
    block = made(True)
    lean(block.projection)
    x = torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        summed = block(x)
        block.projection.enable_adapters(False)
        torch.testing.assert_close(block(x), block.projection.get_base_layer()(x), atol=0, rtol=0)
        block.projection.enable_adapters(True)
        block.projection.merge()
        torch.testing.assert_close(block(x), summed, atol=1e-12, rtol=0)


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.5}, {"use_dora": True}])
def test_what_is_more_than_lora_stays_peft_s(settings: dict[str, object]) -> None:
    block = made(True, **settings)
    lean(block.projection)
    x = torch.ones(3, 6, dtype=torch.float64)
    expected = Linear.forward(block.projection.eval(), x)
    torch.testing.assert_close(block.projection(x), expected, atol=0, rtol=0)
