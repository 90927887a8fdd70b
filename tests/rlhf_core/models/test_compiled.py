"""The compiled forward against the fused one: the same model, the same steps, in every family that both compute."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from rlhf_core.engine.cache import SlotCache
from rlhf_core.engine.reading import SlotSpan, SlotStep
from rlhf_core.models.compiled import CompiledForward
from rlhf_core.models.forward import Forward, PlainForward, make_forward
from rlhf_core.models.fused import FusedForward
from rlhf_core.models.kernels.products import ROWS_AT_ONCE
from rlhf_core.models.lora import Adapter
from rlhf_core.models.projection import LowRank
from tests.rlhf_core.families import DECODER, FAMILIES, FUSED_FAMILIES, WINDOW

CONTEXT = 256
ADAPTED = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj", "lm_head")

CONFIGS: dict[str, Callable[[], Any]] = {
    **{name: FAMILIES[name] for name in FUSED_FAMILIES},
    "biased": lambda: transformers.LlamaConfig(**DECODER, attention_bias=True, mlp_bias=True),
    "tied": lambda: transformers.LlamaConfig(**{**DECODER, "tie_word_embeddings": True}),
    "gelu": lambda: transformers.LlamaConfig(**DECODER, hidden_act="gelu"),
}

Spans = Sequence[tuple[int, int, int]]
"""(slot, start, length) of each prompt part."""


def make_model(name: str) -> Any:
    """A random model with norms that are not all 1 and biases that are not all 0: one applied wrongly shows."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(CONFIGS[name](), dtype=torch.float32).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or name.endswith("bias"):
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def make_adapter(model: Any) -> Adapter:
    """Terms of rank 3, beside some of the modules that share an input and not beside others."""
    source = torch.Generator().manual_seed(6)
    terms = {}
    for name, module in model.named_modules():
        if name.endswith(ADAPTED):
            down = torch.randn(module.in_features, 3, generator=source) * 0.2
            terms[name] = LowRank(down, torch.randn(3, module.out_features, generator=source) * 0.2)
    return Adapter(terms)


class Play:
    """Steps of a forward over a cache of its own; tokens are drawn alike for each."""

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._cache = SlotCache(4, CONTEXT)
        self._dice = random.Random(1)

    def step(self, lengths: Sequence[int], spans: Spans = (), kept: Sequence[int] | None = None) -> Tensor:
        """One token each for slots 0.. of these lengths, this token included, and prompt parts -> logits."""
        rows = [(slot, length - 1) for slot, length in enumerate(lengths)]
        placed = []
        for slot, start, length in spans:
            placed.append(SlotSpan(slot, len(rows), start, length))
            rows += [(slot, position) for position in range(start, start + length)]
        tokens = [self._dice.randrange(5, 300) for _ in rows]
        slots, positions = (torch.tensor(column) for column in zip(*rows, strict=True))
        step = SlotStep(self._cache, slots, positions, tuple(lengths), tuple(placed))
        with torch.inference_mode():
            return self._forward(torch.tensor(tokens), positions, None if kept is None else torch.tensor(kept), step)

    def traffic(self) -> list[Tensor]:
        """Prompts in parts, decode rows, and both together, past the window of those that have one."""
        assert WINDOW < 20
        return [
            self.step([], [(0, 0, 20), (1, 0, 11)]),
            self.step([], [(0, 20, 10), (2, 0, 3)], kept=[9]),
            self.step([31, 12]),
            self.step([32, 13], [(2, 3, 20)], kept=[0, 1, 21]),
            self.step([33, 14, 24]),
            self.step([34, 15, 25], [(3, 0, 1)]),
            self.step([35, 16, 26, 2]),
        ]


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        assert mine.shape == other.shape
        # Of logits that spread over tens of nats, a float32 has seven digits.
        assert (mine - other).abs().max() < 1e-5 * max(1.0, float(other.abs().max()))


def both(model: Any, *, frozen: bool) -> tuple[CompiledForward, FusedForward]:
    return (
        CompiledForward(model, max_context=CONTEXT, frozen=frozen),
        FusedForward(model, max_context=CONTEXT, frozen=False),
    )


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_step_has_the_logits_of_the_fused_forward(name: str, frozen: bool) -> None:
    compiled, fused = both(make_model(name), frozen=frozen)
    logits = Play(compiled).traffic()
    assert_same(logits, Play(fused).traffic())
    assert [part.shape[0] for part in logits] == [31, 1, 2, 3, 3, 4, 4]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_an_adapter_stands_beside_the_weights_and_leaves_them_alone(name: str, frozen: bool) -> None:
    model = make_model(name)
    compiled, fused = both(model, frozen=frozen)
    before = Play(compiled).traffic()
    adapter = make_adapter(model)
    adapted = Play(compiled.adapted(adapter)).traffic()
    assert_same(adapted, Play(fused.adapted(adapter)).traffic())
    assert (adapted[-1] - before[-1]).abs().max() > 0.1
    assert all(map(torch.equal, Play(compiled).traffic(), before))


@pytest.mark.parametrize("name", CONFIGS)
def test_weights_that_learn_where_they_lie_are_followed(name: str) -> None:
    model = make_model(name)
    compiled, fused = both(model, frozen=False)
    before = Play(compiled).traffic()
    # Every parameter takes a step of its own: embeddings, norms and biases too.
    source = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=source) * 0.05)
    compiled.refresh()
    after = Play(compiled).traffic()
    assert_same(after, Play(fused).traffic())
    assert (after[-1] - before[-1]).abs().max() > 0.1


@pytest.mark.parametrize("adapted", [False, True])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", CONFIGS)
def test_more_rows_than_are_multiplied_at_once_are_computed_too(name: str, frozen: bool, adapted: bool) -> None:
    model = make_model(name)
    forwards: tuple[Any, ...] = both(model, frozen=frozen)
    if adapted:
        forwards = tuple(forward.adapted(make_adapter(model)) for forward in forwards)
    plays = [Play(forward) for forward in forwards]
    # All rows of the longer step go through the head as well; the one after it decodes behind what it stored.
    many, more = ROWS_AT_ONCE + 21, 65
    for lengths, spans in (([], [(0, 0, many)]), ([many + 1], [(1, 0, more)]), ([many + 2, more + 1], [])):
        assert_same(*([play.step(lengths, spans)] for play in plays))


def test_freezing_leaves_every_weight_its_numbers() -> None:
    model = make_model("qwen3")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    CompiledForward(model, max_context=CONTEXT, frozen=True)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name])


def test_joined_weights_lie_where_the_modules_own_do() -> None:
    model = make_model("llama")
    compiled = CompiledForward(model, max_context=CONTEXT, frozen=True)
    before = Play(compiled).step([], [(0, 0, 5)])
    # Were the joined weights a copy, memory would hold them twice, and this would change nothing.
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight.zero_()
            layer.mlp.up_proj.weight.zero_()
    after = Play(compiled).step([], [(0, 0, 5)])
    assert not torch.equal(after, before)
    assert_same([after], [Play(FusedForward(model, max_context=CONTEXT, frozen=False)).step([], [(0, 0, 5)])])


def test_a_cpu_is_served_by_it_and_nothing_else_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("llama")
    served = make_forward(model, max_context=CONTEXT, frozen=False)
    assert isinstance(served, CompiledForward)
    # Its steps are one kernel an operation already, and what a recording replays are tensors.
    assert not served.recordable
    assert isinstance(make_forward(model.bfloat16(), max_context=CONTEXT, frozen=True), CompiledForward)
    # A processor with tiles for bfloat16 multiplies many rows by them, and torch knows how.
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert isinstance(make_forward(model, max_context=CONTEXT, frozen=True), FusedForward)
    assert isinstance(make_forward(model.float(), max_context=CONTEXT, frozen=True), CompiledForward)
    other = transformers.AutoModelForCausalLM.from_config(FAMILIES["gpt2"](), dtype=torch.float32)
    assert isinstance(make_forward(other, max_context=CONTEXT, frozen=True), PlainForward)


def test_weights_in_bfloat16_that_lie_at_an_odd_place_are_multiplied_as_any() -> None:
    model = make_model("llama").bfloat16()
    expected = compute(model)
    weight = model.lm_head.weight
    storage = torch.zeros(1 + weight.numel(), dtype=torch.bfloat16)
    storage[1:] = weight.detach().flatten()
    model.lm_head.weight.data = storage[1:].view(weight.shape)
    assert model.lm_head.weight.storage_offset() == 1
    assert torch.equal(compute(model), expected)


def test_an_odd_number_of_inputs_is_multiplied_in_float32() -> None:
    config = transformers.LlamaConfig(**{**DECODER, "intermediate_size": 65})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    held = compute(model)
    torch.testing.assert_close(held, compute(model.float()), atol=1e-4, rtol=1e-4)


def compute(model: Any) -> Tensor:
    """Logits of a few rows of a frozen model, in float32 whatever its weights are held in."""
    forward = make_forward(model, max_context=CONTEXT, frozen=True, dtype=torch.float32)
    assert isinstance(forward, CompiledForward)
    return Play(forward).step([], [(0, 0, 5), (1, 0, 3)])
