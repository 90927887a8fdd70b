"""Sampling through the real engine, and the trainer's forward pass against the model's plain one."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch import nn

from rlhf_core.engine.engine import Engine
from rlhf_core.errors import ModelError, TrainingError
from rlhf_core.learning import analyse as analysis
from rlhf_core.learning.analyse import TokenBatch, analyse, head_logprobs, require_plain_head
from rlhf_core.learning.ppo_settings import PPOSettings
from rlhf_core.learning.rollouts import (
    SampledResponse,
    measure,
    measuring_groups,
    padding_fraction,
    plan_microbatches,
    request_seed,
    sample,
)
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.models.trainable import Trainable
from rlhf_core.models.value import ValueHead
from rlhf_core.records import Sampling

PAIRS = [((5, 6, 7), (8, 9, 1)), ((5,), (10,)), ((20, 21, 22, 23, 24, 25), (26, 1)), ((9, 8), (7, 6, 5, 4, 3, 1))]


@pytest.fixture
def value_head() -> ValueHead:
    """A head that answers something: the real one starts at zero."""
    head = ValueHead(32)
    with torch.no_grad():
        head.linear.weight.copy_(torch.linspace(-1, 1, 32)[None])
        head.linear.bias.fill_(0.25)
    return head


def beside_itself(policy: LoadedPolicy) -> Trainable:
    """A policy that is its own reference, untouched."""
    return Trainable(policy, None, policy.model, True)


def draw(policy: LoadedPolicy, prompts: list[tuple[int, ...]], seed: int = 0) -> list[SampledResponse]:
    engine = Engine(policy, max_running=4, max_waiting=64, max_context=64, seed=seed)
    return sample(engine, prompts, Sampling(temperature=0.8, max_tokens=8))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_entropy_and_values_are_the_plain_models(
    tiny_policy: LoadedPolicy, value_head: ValueHead, temperature: float
) -> None:
    batch = TokenBatch.of(PAIRS)
    with torch.no_grad():
        ours = analyse(tiny_policy.model, batch, temperature=temperature, value_head=value_head, with_entropy=True)
    for row, (prompt, response) in enumerate(PAIRS):
        with torch.no_grad():
            output = tiny_policy.model(torch.tensor([prompt + response]), output_hidden_states=True)
        span = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
        logprobs = (output.logits[0, span] / temperature).log_softmax(-1)
        drawn = logprobs[torch.arange(len(response)), torch.tensor(response)]
        torch.testing.assert_close(ours.logprobs[row, : len(response)], drawn, atol=1e-5, rtol=0)
        entropy = -(logprobs.exp() * logprobs).sum(-1)
        torch.testing.assert_close(ours.entropy[row, : len(response)], entropy, atol=1e-5, rtol=0)
        values = value_head(output.hidden_states[-1][0, span])
        torch.testing.assert_close(ours.values[row, : len(response)], values, atol=1e-5, rtol=0)
    assert all((tensor[~batch.response_mask] == 0).all() for tensor in ours)


def test_padding_changes_nothing(tiny_policy: LoadedPolicy, value_head: ValueHead) -> None:
    batch = TokenBatch.of(PAIRS)
    junk = torch.randint(0, 300, (4, 5), generator=torch.Generator().manual_seed(0))
    wider = TokenBatch(
        torch.cat([batch.input_ids, junk], 1),
        batch.prompt_lengths,
        torch.cat([batch.response_mask, torch.zeros(4, 5, dtype=torch.bool)], 1),
    )
    with torch.no_grad():
        plain, padded = (
            analyse(tiny_policy.model, one, temperature=1.0, value_head=value_head) for one in (batch, wider)
        )
    torch.testing.assert_close(padded.logprobs[:, :6], plain.logprobs, atol=1e-5, rtol=0)
    torch.testing.assert_close(padded.values[:, :6], plain.values, atol=1e-5, rtol=0)


def test_picked_rows_keep_their_tokens_and_lose_their_padding() -> None:
    batch = TokenBatch.of(PAIRS).rows(torch.tensor([1, 0]))
    assert batch.input_ids.tolist() == [[5, 10, 0, 0, 0, 0], [5, 6, 7, 8, 9, 1]]
    assert batch.prompt_lengths.tolist() == [1, 3]
    assert batch.response_mask.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize("logits_at_once", [1, 7 * 11, 10 * 11, 1000 * 11])
def test_chunks_of_logits_give_the_same_values_and_gradients(logits_at_once: int) -> None:
    head = nn.Linear(4, 11, bias=False)
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(10, 4, generator=generator, requires_grad=True)
    targets = torch.randint(0, 11, (10,), generator=generator)
    whole, entropy = head_logprobs(head, hidden, targets, 0.9, True)
    chunked, chunked_entropy = head_logprobs(head, hidden, targets, 0.9, True, logits_at_once=logits_at_once)
    torch.testing.assert_close(chunked, whole)
    torch.testing.assert_close(chunked_entropy, entropy)
    weights = torch.randn(10, generator=generator)
    for ours, theirs in zip(
        torch.autograd.grad((chunked * weights).sum(), (hidden, head.weight)),
        torch.autograd.grad((whole * weights).sum(), (hidden, head.weight)),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("at_once", [4, 256])
def test_rows_that_half_precision_is_rounded_up_by_count_for_nothing(
    at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = nn.Linear(8, 11, bias=False)
    hidden = torch.randn(10, 8, generator=torch.Generator().manual_seed(0), requires_grad=True)
    targets, found = torch.arange(10), []
    for rounds in (True, False):
        if not rounds:
            monkeypatch.setattr(analysis, "round_rows", lambda *_: 0)
        with torch.autocast("cpu", torch.bfloat16):
            logprobs, entropy = head_logprobs(
                head, hidden, targets, 0.7, True, entropy_learns=True, logits_at_once=at_once * 11
            )
        weights = torch.arange(1.0, 11.0)
        found.append(
            (logprobs, entropy, *torch.autograd.grad((weights * (logprobs + entropy)).sum(), (hidden, head.weight)))
        )
    assert len(found[0][0]) == 10
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=2e-2)


@pytest.mark.parametrize("at_once", [1, 7, 11, 256])
def test_no_more_logits_exist_at_a_time_than_are_allowed(at_once: int) -> None:
    seen = []

    class Watched(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            seen.append(states.shape[0])
            return super().forward(states)

    head = Watched(4, 11, bias=False)
    hidden = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logprobs, entropy = head_logprobs(
        head, hidden, torch.arange(10), 1.0, True, entropy_learns=True, logits_at_once=at_once * 11
    )
    (logprobs.sum() + entropy.sum()).backward()
    assert max(seen) <= at_once
    # Chunks are made once more for the gradient, and all rows at once are not.
    assert sum(seen) == (10 if at_once >= 10 else 20)


def test_an_entropy_that_learns_has_the_gradient_of_the_whole_distribution() -> None:
    head = nn.Linear(4, 11, bias=False)
    hidden = torch.randn(10, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    logprobs = (head(hidden) / 0.9).log_softmax(-1)
    (expected,) = torch.autograd.grad(-(logprobs.exp() * logprobs).sum(), hidden)
    for at_once in (11, 1000):
        _, entropy = head_logprobs(
            head, hidden, torch.arange(10), 0.9, True, entropy_learns=True, logits_at_once=at_once
        )
        torch.testing.assert_close(torch.autograd.grad(entropy.sum(), hidden)[0], expected)


def test_the_engine_and_the_trainer_agree_on_every_logprob(tiny_policy: LoadedPolicy) -> None:
    prompts = [tuple(range(5, 5 + length)) for length in range(1, 11)]
    responses = draw(tiny_policy, prompts)
    batch = TokenBatch.of([(one.prompt, one.token_ids) for one in responses])
    with torch.no_grad():
        ours = analyse(tiny_policy.model, batch, temperature=0.8)
    for row, one in enumerate(responses):
        assert one.prompt == prompts[row]
        torch.testing.assert_close(
            ours.logprobs[row, : len(one.token_ids)], torch.tensor(one.logprobs), atol=1e-4, rtol=0
        )


def test_only_a_response_with_an_end_token_has_ended(tiny_policy: LoadedPolicy) -> None:
    responses = draw(tiny_policy, [(number,) for number in range(5, 65)])
    assert {one.ended for one in responses} == {True, False}
    for one in responses:
        assert one.ended == (one.token_ids[-1] in tiny_policy.end_token_ids)
        assert one.ended or len(one.token_ids) == 8
        assert not set(one.token_ids[:-1]) & tiny_policy.end_token_ids


@pytest.mark.parametrize(
    "sampling", [Sampling(top_p=0.9), Sampling(top_k=5), Sampling(stop=("x",)), Sampling(temperature=0.0)]
)
def test_sampling_that_would_break_the_ratios_is_refused(tiny_policy: LoadedPolicy, sampling: Sampling) -> None:
    engine = Engine(tiny_policy, max_running=1, max_waiting=1, max_context=16)
    with pytest.raises(TrainingError, match="untruncated"):
        sample(engine, [(5,)], sampling)


def test_measuring_does_not_depend_on_the_microbatches(tiny_policy: LoadedPolicy, value_head: ValueHead) -> None:
    responses = draw(tiny_policy, [tuple(range(5, 5 + length)) for length in (1, 9, 3, 7, 5)])
    scores = torch.tensor([1.0, -1.0, 0.5, 9.0, 0.0])

    def measured(microbatch_tokens: int) -> list[torch.Tensor]:
        settings = PPOSettings(microbatch_tokens=microbatch_tokens, temperature=0.8)
        rollouts = measure(responses, scores, beside_itself(tiny_policy), value_head, settings, kl_coef=0.1)
        assert not rollouts.logprobs.requires_grad
        names = ("logprobs", "ref_logprobs", "entropy", "values", "rewards", "advantages", "returns", "weights")
        return [getattr(rollouts, name) for name in names]

    for one, many in zip(measured(1), measured(10_000), strict=True):
        torch.testing.assert_close(one, many, atol=2e-5, rtol=0)


def test_the_pieces_of_a_rollout_fit_together(tiny_policy: LoadedPolicy, value_head: ValueHead) -> None:
    prompt, response = PAIRS[0]
    one = SampledResponse(prompt, response, (-1.0, -1.0, -1.0), ended=False)
    settings = PPOSettings(gae_lambda=1.0, score_clip=5.0, missing_end_penalty=1.0)
    rollouts = measure([one], torch.tensor([9.0]), beside_itself(tiny_policy), value_head, settings, kl_coef=0.1)
    # Policy and reference are one model, so there is no KL: the reward is the score, clipped to 5, less 1, at the end,
    # and with gamma and lambda 1 the return at each of the three tokens is that same 4.
    assert rollouts.scores.tolist() == [9.0]
    torch.testing.assert_close(rollouts.rewards, torch.tensor([[0.0, 0.0, 4.0]]))
    torch.testing.assert_close(rollouts.returns, torch.full((1, 3), 4.0))
    torch.testing.assert_close(rollouts.raw_advantages, 4.0 - rollouts.values)
    assert float(rollouts.advantages.mean()) == pytest.approx(0.0, abs=1e-6)


def test_an_end_token_with_the_id_of_padding_is_trained_and_scored(tiny_policy: LoadedPolicy) -> None:
    # Padding is token 0, and here so is the end token: both responses count to their last token, told by length.
    responses = [
        SampledResponse((5, 6), (7, 0), (-1.0, -1.0), ended=True),
        SampledResponse((5,), (7, 8, 9, 0), (-1.0,) * 4, ended=True),
    ]
    settings = PPOSettings(gae_lambda=1.0)
    scores = torch.tensor([2.0, 3.0])
    rollouts = measure(responses, scores, beside_itself(tiny_policy), ValueHead(32), settings, kl_coef=0.1)
    mask = torch.tensor([[True, True, False, False], [True] * 4])
    assert rollouts.batch.response_mask.tolist() == mask.tolist()
    assert rollouts.rewards.tolist() == [[0.0, 2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 3.0]]
    assert (rollouts.logprobs[mask] < 0).all()
    assert (rollouts.advantages[mask] != 0).all()


def test_a_seed_per_rollout_makes_it_independent_of_the_others(tiny_policy: LoadedPolicy) -> None:
    prompts = [tuple(range(5, 6 + length)) for length in range(6)]
    seeds = [request_seed(3, 1, index) for index in range(6)]
    assert len({*seeds, request_seed(3, 2, 0), request_seed(4, 1, 0)}) == 8
    drawn = []
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1], [2]):
        engine = Engine(tiny_policy, max_running=2, max_waiting=8, max_context=32, seed=order[0])
        sampling = Sampling(max_tokens=8)
        some = sample(engine, [prompts[at] for at in order], sampling, seeds=[seeds[at] for at in order])
        drawn.append({at: one.token_ids for at, one in zip(order, some, strict=True)})
    assert all(each[at] == drawn[0][at] for each in drawn[1:] for at in each)


def test_rollouts_are_measured_in_the_microbatches_that_the_first_epoch_trains_on() -> None:
    settings = PPOSettings(minibatch_size=3, microbatch_tokens=20)
    # Minibatches [0, 1, 2] and [3, 4]; within each, longest first, at most 20 tokens.
    assert measuring_groups([10, 4, 9, 5, 30], settings) == [[0, 2], [1], [4], [3]]


def test_importance_weights_are_capped_ratios_of_trainer_to_sampler(tiny_policy: LoadedPolicy) -> None:
    prompt, response = PAIRS[0]
    head, settings = ValueHead(32), PPOSettings(importance_cap=2.0)
    with torch.no_grad():
        logprobs = analyse(tiny_policy.model, TokenBatch.of([PAIRS[0]]), temperature=1.0).logprobs[0]
    # The sampler claims e^0, e^-.5 times and e^2 times less than the trainer: weights 1, e^.5, and e^2 capped
    # at 2.
    claimed = tuple((logprobs - torch.tensor([0.0, 0.5, 2.0])).tolist())
    rollouts = measure(
        [SampledResponse(prompt, response, claimed, True)],
        torch.zeros(1),
        beside_itself(tiny_policy),
        head,
        settings,
        0.1,
    )
    torch.testing.assert_close(rollouts.weights, torch.tensor([[1.0, 1.648721, 2.0]]), atol=1e-5, rtol=0)


def test_microbatches_hold_each_row_once_within_the_bound_and_waste_little() -> None:
    shuffler = random.Random(0)
    lengths = [shuffler.randint(5, 120) for _ in range(200)]
    groups = plan_microbatches(lengths, range(200), 1024)
    assert sorted(itertools.chain(*groups)) == list(range(200))
    assert all(len(group) * max(lengths[row] for row in group) <= 1024 for group in groups)
    assert padding_fraction(lengths, groups) < 0.1 < padding_fraction(lengths, [list(range(200))])
    # A row longer than the bound still gets through, alone.
    assert plan_microbatches([50, 9, 50], [2, 1, 0], 20) == [[2], [0], [1]]


def test_padding_fraction_counts_empty_places() -> None:
    # Widths 4 and 1: 2 * 4 + 1 = 9 places for 4 + 3 + 1 = 8 tokens.
    assert padding_fraction([4, 3, 1], [[0, 1], [2]]) == pytest.approx(1 / 9)
    # Half as long is not put beside it, even in one group.
    assert padding_fraction([4, 2, 1], [[0, 1, 2]]) == 0.0


def test_a_model_that_changes_its_logits_after_the_head_is_refused(tiny_policy: LoadedPolicy) -> None:
    require_plain_head(tiny_policy.model)
    config = tiny_policy.model.config
    config.final_logit_softcapping = 30.0
    try:
        with pytest.raises(ModelError, match="final_logit_softcapping to 30"):
            require_plain_head(tiny_policy.model)
    finally:
        del config.final_logit_softcapping
