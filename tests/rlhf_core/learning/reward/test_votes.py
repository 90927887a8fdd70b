"""Judgements as labels, the loss that they share, and what raters may differ in."""

import math

import pytest
import torch

from rlhf_core.learning.preference_losses import LEFT, RIGHT, TIE
from rlhf_core.learning.reward.votes import (
    LEAST_OF_ONE_RATER,
    RaterEffects,
    Scalars,
    label,
    rater_names,
    sides_were_drawn,
    start_scalars,
    tie_start,
    vote_losses,
)
from rlhf_core.records import PreferencePair, RatedResponse, RatingValue, Side
from tests.rlhf_core.learning.reward.simulated_votes import labels_of


def rated(value: RatingValue, rater: str = "ann", created_at: float = 0.0) -> RatedResponse:
    return RatedResponse(
        event_id="e",
        rater=rater,
        interaction_id="i",
        policy_version=1,
        prompt_token_ids=(1,),
        token_ids=(2,),
        value=value,
        prompt_key="k",
        created_at=created_at,
    )


def paired(side: Side, rater: str = "ann", *, tie: bool = False, margin: float = 0.0) -> PreferencePair:
    return PreferencePair(
        event_id="e",
        rater=rater,
        comparison_id="c",
        policy_version=1,
        prompt_token_ids=(1,),
        chosen_token_ids=(2,),
        rejected_token_ids=(3,),
        chosen_side=side,
        prompt_key="k",
        tie=tie,
        margin=margin,
    )


def fixed(alpha: float, threshold: float, eta: float, side: float) -> Scalars:
    u = math.log(math.expm1(eta)) if eta else -30.0
    given = torch.tensor([math.log(alpha), threshold, u, side], dtype=torch.float64)
    return Scalars(given[0], given[1], given[2], given[3], tie_start=u)


def test_labels_say_what_the_judgements_said() -> None:
    ratings = [rated("up"), rated("down", "bob")]
    pairs = [paired("left", "bob"), paired("right", "cyd", margin=0.5), paired("left", tie=True)]
    labels = label(ratings, pairs)
    assert rater_names(ratings, pairs) == ["ann", "bob", "cyd"]
    assert labels.up.tolist() == [True, False]
    assert (labels.thumb_raters.tolist(), labels.pair_raters.tolist()) == ([0, 1], [1, 2, 0])
    assert labels.outcomes.tolist() == [LEFT, RIGHT, TIE]
    assert labels.margins.tolist() == [0.0, 0.5, 0.0]
    assert labels.pair_weights.tolist() == [[1.0, 0.0]] * 3


def test_old_judgements_weigh_less_and_ancient_ones_a_fifth() -> None:
    day = 86400.0
    ratings = [rated("up", created_at=each * day) for each in (0.0, 990.0, 1000.0)]
    weights = label(ratings, [], half_life_days=10.0).thumb_weights[:, 0]
    assert weights.tolist() == pytest.approx([0.2, 0.5, 1.0])
    assert label(ratings, []).thumb_weights[:, 0].tolist() == [1.0] * 3


def test_the_shared_loss_of_a_thumb_a_choice_and_a_tie_worked_by_hand() -> None:
    # alpha 2, b 1; theta = e^eta = 2, side bias log 2.
    # Thumb up at s = 1: logit 1. Left over right by log 2: z = log 4, P(left) = 4 / (4 + 2) = 2/3. Tie at equal
    # scores: z = log 2, P(left) = 1/2, P(right) = 1 / (1 + 4) = 1/5, P(tie) = 3/10.
    labels = label([rated("up")], [paired("left"), paired("left", tie=True)])
    scalars = fixed(2.0, 1.0, math.log(2), math.log(2))
    left, right = torch.tensor([math.log(2), 0.7]).double(), torch.tensor([0.0, 0.7]).double()
    thumbs, choices = vote_losses(torch.tensor([1.0]).double(), left, right, labels, scalars)
    assert float(thumbs) == pytest.approx(math.log(1 + math.exp(-1)))
    assert choices.tolist() == pytest.approx([math.log(3 / 2), math.log(10 / 3)])


def test_doubted_votes_count_as_their_opposite_or_less() -> None:
    labels = label([], [paired("left")])._replace(pair_weights=torch.tensor([[0.5, 0.25]], dtype=torch.float64))
    scalars = fixed(1.0, 0.0, 0.0, 0.0)
    lead = torch.tensor([math.log(3)]).double()
    _, choices = vote_losses(lead[:0], lead, torch.zeros(1).double(), labels, scalars)
    # P(left) = 3/4: half a vote costs log(4/3), a quarter of the opposite one log 4.
    assert float(choices) == pytest.approx(0.5 * math.log(4 / 3) + 0.25 * math.log(4))
    assert labels.total(1.0) == 0.75


def test_a_single_rater_and_rare_raters_have_no_effects_of_their_own() -> None:
    one = labels_of(torch.tensor([LEFT, RIGHT] * 20))
    assert RaterEffects(one, 1).raw.numel() == 0
    rare = labels_of(torch.tensor([LEFT] * 40), torch.arange(40) % 10)
    assert LEAST_OF_ONE_RATER == 5
    assert RaterEffects(rare, 10).raw.numel() == 0
    assert RaterEffects(rare, 10)().tolist() == [[0.0] * 10] * 3


def test_effects_are_centred_on_the_votes_that_they_touch() -> None:
    raters = torch.tensor([0] * 30 + [1] * 10 + [2] * 2)
    effects = RaterEffects(labels_of(torch.zeros(42, dtype=torch.long), raters), 3)
    with torch.no_grad():
        effects.raw[1] = torch.tensor([0.8, -0.4])
    sides = effects()[1].tolist()
    # The mean over votes is (30 * 0.8 - 10 * 0.4) / 40 = 0.5; the rare third rater has none.
    assert sides == pytest.approx([0.3, -0.9, 0.0])


def test_ties_start_where_equal_answers_are_tied_as_often_as_pairs_were() -> None:
    labels = labels_of(torch.tensor([TIE] * 35 + [LEFT] * 30 + [RIGHT] * 35))
    eta = torch.nn.functional.softplus(torch.tensor(tie_start(labels)))
    assert float(torch.tanh(eta / 2)) == pytest.approx(0.35, abs=1e-6)
    assert float(torch.nn.functional.softplus(torch.tensor(tie_start(labels_of(torch.tensor([LEFT])))))) < 1e-12


def test_only_what_the_labels_can_teach_is_learned() -> None:
    def learned(outcomes: list[int], ups: int) -> set[str]:
        labels = labels_of(torch.tensor(outcomes, dtype=torch.long), up=torch.ones(ups, dtype=torch.bool))
        scalars = start_scalars(labels, torch.zeros(1).double())
        names = ("log_alpha", "threshold", "tie_u", "side_bias")
        return {name for name in names if any(getattr(scalars, name) is each for each in scalars.leaves(labels))}

    assert learned([], 4) == {"threshold"}
    assert learned([LEFT, RIGHT] * 5, 0) == {"side_bias"}
    assert learned([LEFT] * 10, 4) == {"threshold", "log_alpha"}  # sides were written down, not drawn
    assert learned([LEFT, RIGHT, TIE] * 5, 4) == {"threshold", "log_alpha", "tie_u", "side_bias"}


def test_sides_that_are_nearly_always_the_same_were_not_drawn() -> None:
    assert not sides_were_drawn(torch.tensor([LEFT] * 95 + [RIGHT] * 5))
    assert sides_were_drawn(torch.tensor([LEFT] * 80 + [RIGHT] * 20 + [TIE] * 300))
    assert not sides_were_drawn(torch.tensor([LEFT, RIGHT]))


def test_who_gave_no_vote_of_a_kind_has_no_effect_of_that_kind() -> None:
    choices = torch.tensor([LEFT, RIGHT] * 60)
    labels = labels_of(choices, torch.tensor([0] * 90 + [1] * 30), up=torch.tensor([True, False] * 20))
    effects = RaterEffects(labels._replace(thumb_raters=torch.full((40,), 2)), 3)
    with torch.no_grad():
        effects.raw.copy_(torch.tensor([[0.8, -0.4, 0.0], [0.2, 0.6, 0.0], [0.0, 0.0, 1.0]]))
    slopes, sides, strictness = effects().tolist()
    assert slopes[2] == sides[2] == strictness[0] == strictness[1] == 0.0
    assert slopes[0] != 0.0
