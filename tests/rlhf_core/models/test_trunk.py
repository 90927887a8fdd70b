"""The written-out trunk: its formulas, and what it leaves to the model. That it is the model: test_documents.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers

from rlhf_core.errors import ModelError
from rlhf_core.models.documents import Documents, run_documents
from rlhf_core.models.load import load_policy
from rlhf_core.models.rms_norm import _RMSNorm
from rlhf_core.models.trunk import WRITTEN, run_trunk
from tests.rlhf_core.families import DECODER, make_family

MakeTinyModel = Callable[..., Path]
CPU = torch.device("cpu")
TOKENS = torch.tensor([5, 6, 7, 8, 9])


def rows(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def test_a_norm_of_numbers_worked_by_hand() -> None:
    # sqrt((9 + 16) / 2 + 0.5) is 3.6056; a row of zeros is divided by the root of epsilon alone.
    x, weight = torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.tensor([1.0, 2.0])
    normed = _RMSNorm.apply(x, weight, 0.5)
    torch.testing.assert_close(normed, torch.tensor([[3 / 13**0.5, 8 / 13**0.5], [0.0, 0.0]]))


@pytest.mark.parametrize("shape", [(5, 6), (3, 2, 6)])
def test_the_gradient_of_a_norm(shape: tuple[int, ...]) -> None:
    assert torch.autograd.gradcheck(lambda x, w: _RMSNorm.apply(x, w, 1e-3), (rows(*shape), rows(6, seed=2)))


def test_frozen_weights_get_no_gradient(make_tiny_model: MakeTinyModel, tmp_path: Path) -> None:
    trunk = load_policy(make_family(make_tiny_model, tmp_path, transformers.LlamaConfig(**DECODER))).model.base_model
    assert type(trunk).__name__ in WRITTEN
    trunk.requires_grad_(False)
    learning = trunk.layers[0].mlp.up_proj.weight.requires_grad_()
    run_documents(trunk, TOKENS, Documents([5], CPU)).sum().backward()
    assert learning.grad is not None
    assert learning.grad.abs().sum() > 0
    assert [each for each in trunk.parameters() if each.grad is not None] == [learning]


def test_attention_that_drops_out_is_refused(make_tiny_model: MakeTinyModel, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**DECODER, attention_dropout=0.25)
    trunk = load_policy(make_family(make_tiny_model, tmp_path, config)).model.base_model
    run_trunk(trunk, TOKENS, torch.arange(5), Documents([5], CPU))
    trunk.train()
    with pytest.raises(ModelError, match=r"LlamaAttention drops out 0\.25 of its attention"):
        run_trunk(trunk, TOKENS, torch.arange(5), Documents([5], CPU))
