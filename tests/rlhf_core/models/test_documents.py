"""Documents end to end against each document alone in the model's own attention: values and gradients."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import transformers
from torch import Tensor
from torch.nn.functional import pad

from rlhf_core.errors import ModelError
from rlhf_core.models import documents as subject
from rlhf_core.models.documents import Documents, round_rows, run_documents, use_documents
from rlhf_core.models.load import LoadedPolicy, load_policy
from tests.rlhf_core.families import FAMILIES, WINDOW, make_family

MakeTinyModel = Callable[..., Path]
CPU = torch.device("cpu")
LENGTHS = (7, 40, 1, 23, 19, 38)
"""Two groups or more, a document of one token, and two beyond the window."""
MOST = [0, 30, 192]
"""Tokens of documents that attend by products: of none, of some groups, of all."""


@pytest.fixture(scope="module", params=list(FAMILIES))
def policy(
    request: pytest.FixtureRequest, make_tiny_model: MakeTinyModel, tmp_path_factory: pytest.TempPathFactory
) -> LoadedPolicy:
    directory = make_family(make_tiny_model, tmp_path_factory.mktemp("family"), FAMILIES[request.param](), seed=5)
    return load_policy(directory)


def texts(lengths: Sequence[int], seed: int = 3) -> list[Tensor]:
    dice = random.Random(seed)
    return [torch.tensor([dice.randrange(5, 300) for _ in range(length)]) for length in lengths]


def gradients(model: torch.nn.Module) -> Tensor:
    found = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    model.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("product_tokens", MOST)
def test_states_and_gradients_are_those_of_each_document_alone(
    policy: LoadedPolicy, product_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "PRODUCT_TOKENS", product_tokens)
    trunk, written = policy.model.base_model, texts(LENGTHS)
    assert max(LENGTHS) > 2 * WINDOW
    alone = torch.cat([trunk(input_ids=each[None], use_cache=False).last_hidden_state[0] for each in written])
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(1))
    (alone * weights).sum().backward()
    wanted = gradients(trunk)
    together = run_documents(trunk, torch.cat(written), Documents(LENGTHS, CPU))
    (together * weights).sum().backward()
    found = gradients(trunk)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found, wanted, atol=2e-4 * float(wanted.abs().max()), rtol=1e-3)


def test_branches_go_on_from_what_they_share() -> None:
    documents = Documents([13, 5], CPU, torch.tensor([0] * 4 + [1] * 3 + [2] * 6 + [0] * 5), spare=2)
    assert documents.positions.tolist() == [0, 1, 2, 3, 4, 5, 6, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 0, 0]


@pytest.mark.parametrize("product_tokens", MOST)
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
def test_branches_see_what_they_share_and_themselves(
    family: str, make_tiny_model: MakeTinyModel, tmp_path: Path, product_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "PRODUCT_TOKENS", product_tokens)
    policy = load_policy(make_family(make_tiny_model, tmp_path, FAMILIES[family](), seed=5))
    trunk = policy.model.base_model
    shared, one, two, other = texts((14, 23, 6, 5))
    assert len(shared) < WINDOW < len(shared) + len(two)
    documents = Documents([43, 5], CPU, torch.tensor([0] * 14 + [1] * 23 + [2] * 6 + [0] * 5))
    states = run_documents(trunk, torch.cat([shared, one, two, other]), documents)
    apart, weights, total = [], torch.randn(48, 32, generator=torch.Generator().manual_seed(1)), torch.zeros(())
    for start, end, alone in ((14, 37, [shared, one]), (37, 43, [shared, two]), (43, 48, [other])):
        wanted = trunk(input_ids=torch.cat(alone)[None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(states[start:end], wanted[start - end :], atol=1e-4, rtol=1e-4)
        apart.append((start, end))
        total = total + (wanted[start - end :] * weights[start:end]).sum()
    total.backward()
    expected = gradients(trunk)
    torch.stack([(states[start:end] * weights[start:end]).sum() for start, end in apart]).sum().backward()
    torch.testing.assert_close(gradients(trunk), expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-3)


@pytest.mark.parametrize("product_tokens", MOST)
def test_in_bfloat16_it_is_as_close_as_the_models_own_attention(
    make_tiny_model: MakeTinyModel, tmp_path: Path, product_tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subject, "PRODUCT_TOKENS_IN_HALF", product_tokens)
    trunk = load_policy(make_family(make_tiny_model, tmp_path, FAMILIES["qwen2"](), seed=5)).model.base_model
    lengths = (*LENGTHS, 5)
    written = texts(lengths)
    with torch.no_grad():
        exact = run_documents(trunk, torch.cat(written), Documents(lengths, CPU))
        with torch.autocast("cpu", torch.bfloat16):
            assert round_rows(sum(lengths), CPU) == 11
            together = run_documents(trunk, torch.cat(written), Documents(lengths, CPU))
            spared = run_documents(trunk, pad(torch.cat(written), (0, 3)), Documents(lengths, CPU, spare=3))
            torch.testing.assert_close(spared[:-3], together)
            alone = torch.cat([trunk(input_ids=each[None], use_cache=False).last_hidden_state[0] for each in written])
    ours, theirs = ((each - exact).abs().mean() for each in (together, alone))
    assert 0 < ours < 1.25 * theirs


def test_spare_tokens_change_nothing(policy: LoadedPolicy) -> None:
    trunk, written = policy.model.base_model, torch.cat(texts(LENGTHS))
    found = []
    for spare in (0, 5):
        states = run_documents(trunk, pad(written, (0, spare), value=9), Documents(LENGTHS, CPU, spare=spare))
        (states[: len(written)] * torch.arange(float(len(written)))[:, None]).sum().backward()
        found.append((states[: len(written)], gradients(trunk)))
    (states, learned), (expected, wanted) = found
    torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(learned, wanted, atol=2e-5 * float(wanted.abs().max()), rtol=1e-3)


def test_rows_are_rounded_up_for_a_cpus_products_in_half_precision_alone() -> None:
    counts = (1, 16, 31, 480, 513, 632, 1100, 2048)
    assert [round_rows(rows, CPU) for rows in counts] == [0] * len(counts)
    with torch.autocast("cpu", torch.bfloat16):
        assert [rows + round_rows(rows, CPU) for rows in counts] == [16, 16, 32, 480, 544, 640, 1152, 2048]
        assert round_rows(513, torch.device("cuda")) == 0


def test_states_that_are_wanted_are_those_of_all_and_learn_as_they_do(policy: LoadedPolicy) -> None:
    trunk, written = policy.model.base_model, torch.cat(texts(LENGTHS))
    wanted = torch.tensor([3, 7, 40, 41, 100, len(written) - 1])
    states = run_documents(trunk, written, Documents(LENGTHS, CPU))[wanted]
    weights = torch.randn(states.shape, generator=torch.Generator().manual_seed(1))
    (states * weights).sum().backward()
    expected = gradients(trunk)
    alone = run_documents(trunk, written, Documents(LENGTHS, CPU), wanted)
    (alone * weights).sum().backward()
    torch.testing.assert_close(alone, states, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients(trunk), expected, atol=2e-4 * float(expected.abs().max()), rtol=1e-3)


def test_a_model_that_keeps_its_own_attention_is_refused_until_told(
    make_tiny_model: MakeTinyModel, tmp_path: Path
) -> None:
    trunk = load_policy(make_family(make_tiny_model, tmp_path, FAMILIES["llama"](), seed=5)).model.base_model
    trunk.set_attn_implementation("sdpa")
    tokens, documents = torch.tensor([5, 6, 7]), Documents([1, 2], CPU)
    with pytest.raises(ModelError, match="LlamaModel has not been told to read documents end to end"):
        run_documents(trunk, tokens, documents)
    use_documents(trunk)
    assert run_documents(trunk, tokens, documents).shape == (3, 32)


def test_a_model_whose_attention_cannot_be_replaced_is_refused() -> None:
    model = transformers.BloomModel(transformers.BloomConfig(vocab_size=16, hidden_size=8, n_layer=1, n_head=2))
    with pytest.raises(ModelError, match="BloomModel does not let its attention be replaced"):
        use_documents(model)


@pytest.mark.parametrize("lengths", [(), (3, 0)])
def test_documents_have_tokens(lengths: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Documents(lengths, CPU)
