from __future__ import annotations

import pytest
import torch
from torch import nn

from rlhf_core.models.projection import FrozenPart, LivePart, LowRank, Projection


def layers(inner: int, *outs: int, bias: bool = False) -> list[nn.Linear]:
    torch.manual_seed(0)
    return [nn.Linear(inner, out, bias=bias) for out in outs]


def separately(modules: list[nn.Linear], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([module(x) for module in modules], dim=-1)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 8, 16, 17, 100])
@pytest.mark.parametrize("pack", [False, True])
def test_a_frozen_product_is_that_of_its_modules(bias: bool, rows: int, pack: bool) -> None:
    # 512 x 1,280 weights are enough to be packed.
    modules = layers(512, 768, 256, 256, bias=bias)
    x = torch.randn(rows, 512)
    expected = separately(modules, x)
    with torch.inference_mode():
        assert FrozenPart(modules, pack=pack)(x).numpy() == pytest.approx(expected.numpy(), abs=1e-5)


def test_freezing_leaves_the_modules_as_they_were_and_takes_their_memory() -> None:
    modules = layers(8, 6, 4)
    x = torch.randn(3, 8)
    before = separately(modules, x)
    part = FrozenPart(modules, pack=False)
    assert torch.equal(separately(modules, x), before)
    with torch.no_grad():
        modules[1].weight.zero_()
    assert torch.equal(part(x)[:, 6:], torch.zeros(3, 4))


def test_a_live_product_follows_the_training_of_its_modules() -> None:
    modules = layers(8, 6, 4, bias=True)
    part = LivePart(modules)
    with torch.no_grad():
        for module in modules:
            module.weight.mul_(2)
    x = torch.randn(3, 8)
    assert torch.equal(part(x).detach(), separately(modules, x))


def test_an_adapters_term_is_added_to_the_product() -> None:
    (module,) = layers(2, 3)
    with torch.no_grad():
        module.weight.zero_()
    term = LowRank(torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 0.0, -1.0]]))
    # (3, 4) @ (1, 2) = 11, and 11 times (1, 0, -1).
    with torch.inference_mode():
        y = Projection(FrozenPart([module], pack=False), [("m", 3)], term)(torch.tensor([[3.0, 4.0]]))
    assert y.tolist() == [[11.0, 0.0, -11.0]]
