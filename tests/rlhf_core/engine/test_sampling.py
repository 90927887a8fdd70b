from __future__ import annotations

import math
import random
from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch

from rlhf_core.engine.sampling import sample as sample_either_way
from rlhf_core.engine.sequence import COLDEST, GenerationRequest, Sequence
from rlhf_core.errors import ModelError
from rlhf_core.records import Sampling

sample = partial(sample_either_way, by_kernel=True)
PROBS = (0.4, 0.3, 0.15, 0.1, 0.05)


class Policy:
    end_token_ids = frozenset({0})


BOTH_WAYS = pytest.mark.parametrize("top", [0, 1], ids=["kernel", "tensors"])
"""Who asks for the likeliest tokens draws as anyone does, from tensors: the kernel keeps no distribution to read."""


def sequence(min_tokens: int = 0, top: int = 0, **sampling: Any) -> Sequence:
    request = GenerationRequest("r", (1,), Sampling(**sampling), min_tokens=min_tokens, top_logprobs=top)
    subject = Sequence(request, max_tokens=9)
    subject.policy = Policy()  # type: ignore[assignment]
    return subject


def drawn(logits: torch.Tensor, rows: list[Sequence], seed: int = 0) -> list[int]:
    return sample(logits.clone(), rows, random.Random(seed)).token_ids


def draw(count: int, **options: Any) -> Counter[int]:
    logits = torch.tensor(PROBS).log().repeat(count, 1)
    return Counter(drawn(logits, [sequence(**options)] * count, 3))


def chi_square(counts: Counter[int], probs: dict[int, float]) -> float:
    total = sum(counts.values())
    assert set(counts) <= set(probs)
    return sum((counts[i] - total * p) ** 2 / (total * p) for i, p in probs.items())


@BOTH_WAYS
def test_draws_follow_the_distribution(top: int) -> None:
    # 4 degrees of freedom: 18.5 is passed once in a thousand.
    assert chi_square(draw(20_000, top=top), dict(enumerate(PROBS))) < 18.5


@BOTH_WAYS
def test_draws_follow_the_tempered_distribution(top: int) -> None:
    # At temperature 0.5 the probabilities are squared and renormalised.
    squares = [p * p for p in PROBS]
    expected = {i: p / sum(squares) for i, p in enumerate(squares)}
    assert chi_square(draw(20_000, temperature=0.5, top=top), expected) < 18.5


def test_top_k_keeps_the_k_likeliest() -> None:
    # 2 degrees of freedom: 13.8 once in a thousand. 0.4 + 0.3 + 0.15 = 0.85.
    expected = {0: 0.4 / 0.85, 1: 0.3 / 0.85, 2: 0.15 / 0.85}
    assert chi_square(draw(20_000, top_k=3), expected) < 13.8


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    # 0.4 + 0.3 = 0.7 < 0.75, so the third belongs to it: 0.85.
    expected = {0: 0.4 / 0.85, 1: 0.3 / 0.85, 2: 0.15 / 0.85}
    assert chi_square(draw(20_000, top_p=0.75), expected) < 13.8


def test_top_p_of_zero_leaves_the_likeliest_token() -> None:
    assert set(draw(100, top_p=0.0)) == {0}


def test_top_p_counts_within_top_k() -> None:
    # Of the two likeliest, 0.4 / 0.7 = 0.571 reaches 0.55 alone; over all five it would not.
    assert set(draw(200, top_k=2, top_p=0.55)) == {0}


@BOTH_WAYS
def test_greedy_takes_the_likeliest_and_its_logprob_at_temperature_one(top: int) -> None:
    logits = torch.tensor([PROBS]).log() + 3.0
    draws = sample(logits, [sequence(temperature=0.0, top=top)], random.Random(0))
    assert draws.token_ids == [0]
    assert draws.logprobs[0] == pytest.approx(math.log(0.4), abs=1e-6)


@BOTH_WAYS
def test_a_temperature_too_cold_to_divide_by_is_greedy(top: int) -> None:
    # The likeliest comes second, by so little that a draw at this temperature with the number 0 would take the first.
    logits = torch.tensor([[0.0, COLDEST / 4, -50.0]])
    draws = sample(logits, [sequence(temperature=COLDEST / 2, top=top)], random.Random(0))
    assert draws.token_ids == [1]
    assert draws.logprobs[0] == pytest.approx(math.log(0.5), abs=1e-4)


def test_the_logprob_is_the_policys_own_whatever_was_cut_off() -> None:
    logits = torch.tensor([PROBS]).log()
    draws = sample(logits, [sequence(temperature=0.5, top_k=1)], random.Random(0))
    # Squares: 0.16 of 0.16 + 0.09 + 0.0225 + 0.01 + 0.0025 = 0.285.
    assert draws.token_ids == [0]
    assert draws.logprobs[0] == pytest.approx(math.log(0.16 / 0.285), abs=1e-6)


@BOTH_WAYS
def test_rows_of_different_settings_do_not_disturb_each_other(top: int) -> None:
    logits = torch.tensor(PROBS).log().repeat(4, 1)
    rows = [sequence(temperature=0.0), sequence(top_k=1), sequence(temperature=2.0, top_p=1e-9), sequence(top=top)]
    for _ in range(50):
        token_ids = drawn(logits, rows, 1)
        assert token_ids[:3] == [0, 0, 0]
    # random.Random(1) gives 0.134, 0.847, 0.763: the fourth row takes the third number, between 0.7 and 0.85.
    assert token_ids[3] == 2


@BOTH_WAYS
def test_a_seeded_row_draws_from_its_own_source_alone(top: int) -> None:
    logits = torch.tensor(PROBS).log().repeat(3, 1)
    alone, crowded = sequence(seed=5, top=top), sequence(seed=5, top=top)
    alone.uniforms, crowded.uniforms = random.Random(5), random.Random(5)
    shared = random.Random(0)
    first = [sample(logits[:1], [alone], shared).token_ids[0] for _ in range(40)]
    second = [sample(logits, [sequence(), crowded, sequence()], shared).token_ids[1] for _ in range(40)]
    assert first == second
    assert len(set(first)) > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_no_end_token_before_min_tokens(temperature: float) -> None:
    logits = torch.tensor([[50.0, 0.0, 0.0]])
    early = sequence(min_tokens=1, temperature=temperature)
    assert drawn(logits, [early]) != [0]
    early.token_ids.append(1)
    assert drawn(logits, [early]) == [0]


@BOTH_WAYS
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float, top: int) -> None:
    logits = torch.zeros(2, 5)
    logits[1, 3] = bad
    with pytest.raises(ModelError, match="not finite"):
        sample(logits, [sequence(top=top)] * 2, random.Random(0))


@BOTH_WAYS
def test_the_number_zero_draws_no_token_of_probability_zero(top: int) -> None:
    class Zero(random.Random):
        def random(self) -> float:
            return 0.0

    assert sample(torch.tensor([[-math.inf, 0.0, 0.0]]), [sequence(top=top)], Zero()).token_ids == [1]


@BOTH_WAYS
def test_a_token_that_the_model_rules_out_is_never_drawn(top: int) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]]).repeat(200, 1)
    assert set(drawn(logits, [sequence(top=top)] * 200)) == {1}


@BOTH_WAYS
@pytest.mark.parametrize("vocabulary", [256, 700, 1024])
def test_draws_over_many_blocks_follow_the_distribution(vocabulary: int, top: int) -> None:
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1)) * 3
    counts = Counter(drawn(logits.repeat(40_000, 1), [sequence(top=top)] * 40_000))
    probs = logits.double().softmax(-1)
    # Tokens of at least 40 expected draws by themselves, the rest as one: the last block, part of one, included.
    likely = {i: float(p) for i, p in enumerate(probs) if p > 1e-3}
    rare = 1.0 - sum(likely.values())
    observed = Counter({i: counts[i] for i in likely} | {-1: sum(n for i, n in counts.items() if i not in likely)})
    freedom = len(likely)
    # Chi-square of k degrees has mean k and variance 2k.
    assert chi_square(observed, likely | {-1: rare}) < freedom + 4 * math.sqrt(2 * freedom)


@BOTH_WAYS
def test_every_token_can_be_drawn_wherever_its_block_lies(top: int) -> None:
    for token in (0, 255, 256, 511, 512, 699):
        logits = torch.full((3, 700), -math.inf)
        logits[:, token] = 0.0
        assert drawn(logits, [sequence(top=top)] * 3) == [token] * 3


def test_min_p_leaves_out_what_is_rare_beside_the_likeliest() -> None:
    # 0.3 * 0.4 = 0.12: the tokens of 0.4, 0.3 and 0.15 stay.
    expected = {0: 0.4 / 0.85, 1: 0.3 / 0.85, 2: 0.15 / 0.85}
    assert chi_square(draw(20_000, min_p=0.3), expected) < 13.8


def test_top_p_is_exact_when_the_nucleus_is_larger_than_the_first_candidates() -> None:
    # 2,000 equal tokens: top_p 0.5 needs exactly 1,000 of them.
    counts = Counter(drawn(torch.zeros(20_000, 2000), [sequence(top_p=0.5)] * 20_000))
    assert len(counts) == 1000


def test_penalties_take_off_logits_by_what_the_response_holds() -> None:
    row = sequence(temperature=0.0, presence_penalty=0.5, frequency_penalty=0.25)
    row.token_ids[:] = [0, 0, 1]
    # ln .4 - .5 - 2 * .25 = -1.916; ln .3 - .75 = -1.954; ln .15 = -1.897 is now the largest.
    draws = sample(torch.tensor([PROBS]).log(), [row], random.Random(0))
    assert draws.token_ids == [2]
    assert draws.logprobs[0] == pytest.approx(math.log(0.15), abs=1e-6)


def test_penalties_come_before_the_temperature() -> None:
    row = sequence(temperature=2.0, presence_penalty=1.0)
    row.token_ids[:] = [0]
    weights = [math.sqrt(0.4 / math.e)] + [math.sqrt(p) for p in PROBS[1:]]
    expected = {i: weight / sum(weights) for i, weight in enumerate(weights)}
    counts = Counter(drawn(torch.tensor(PROBS).log().repeat(20_000, 1), [row] * 20_000))
    assert chi_square(counts, expected) < 18.5


def test_a_token_too_rare_for_a_float_keeps_its_logprob() -> None:
    row = sequence(temperature=0.0, presence_penalty=2.0, frequency_penalty=2.0)
    row.token_ids[:] = [0] * 100
    draws = sample(torch.tensor([[200.0, 0.0]]), [row], random.Random(0))
    assert (draws.token_ids, draws.logprobs) == ([1], [-200.0])


def test_the_likeliest_tokens_are_reported_for_those_who_ask() -> None:
    asking = Sequence(GenerationRequest("r", (1,), Sampling(temperature=0.5), top_logprobs=2), max_tokens=9)
    draws = sample(torch.tensor([PROBS, PROBS]).log(), [sequence(), asking], random.Random(0))
    assert draws.top[0] == ()
    (first, logprob), (second, _) = draws.top[1]
    # Squares at temperature 0.5, as above.
    assert (first, second) == (0, 1)
    assert logprob == pytest.approx(math.log(0.16 / 0.285), abs=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_kernel_and_tensors_draw_the_same_tokens_from_the_same_numbers(temperature: float) -> None:
    logits = torch.randn(2000, 700, generator=torch.Generator().manual_seed(1)) * 3
    one, other = (
        sample(logits.clone(), [sequence(temperature=temperature, top=top)] * 2000, random.Random(4)) for top in (0, 1)
    )
    assert [len(top) for top in (one.top[0], other.top[0])] == [0, 1]
    same = [row for row in range(2000) if one.token_ids[row] == other.token_ids[row]]
    # A number within a rounding of a boundary between tokens, some 1e-7, may fall on either side: 0.2 of 2,000 do.
    assert len(same) >= 1998
    assert [one.logprobs[row] for row in same] == pytest.approx([other.logprobs[row] for row in same], abs=1e-5)


def test_rows_that_need_tensors_and_rows_that_do_not_draw_side_by_side_as_apart() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(2)) * 2
    settings: list[dict[str, Any]] = [{}, {"top_k": 5}, {"temperature": 0.0}, {"min_tokens": 3}, {}, {"top": 2}]
    rows = [sequence(**options) for options in settings]
    for seed in range(30):
        numbers = random.Random(seed)
        mixed = sample(logits.clone(), rows, random.Random(seed))
        apart = [sample(logits[[row]], [subject], numbers) for row, subject in enumerate(rows)]
        assert mixed.token_ids == [draws.token_ids[0] for draws in apart]
        assert mixed.logprobs == pytest.approx([draws.logprobs[0] for draws in apart], abs=1e-6)
        assert [len(top) for top in mixed.top] == [0, 0, 0, 0, 0, 2]


def test_a_bfloat16_row_is_drawn_as_well() -> None:
    logits = torch.tensor(PROBS).log().repeat(20_000, 1).bfloat16()
    counts = Counter(sample_either_way(logits, [sequence()] * 20_000, random.Random(0), by_kernel=False).token_ids)
    rounded = torch.tensor(PROBS).log().bfloat16().double().softmax(-1).tolist()
    assert chi_square(counts, dict(enumerate(rounded))) < 18.5


def test_logits_that_lie_apart_are_drawn_from_as_those_that_do_not() -> None:
    apart = torch.zeros(3, 40_000)
    apart[:, 14] = 50.0
    rows = [sequence(temperature=0.0) for _ in range(3)]
    assert sample(apart[:, ::2], rows, random.Random(0)).token_ids == [7, 7, 7]
