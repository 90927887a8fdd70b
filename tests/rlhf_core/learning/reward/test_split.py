"""What is held out: prompts always, raters where that is possible."""

import msgspec

from rlhf_core.learning.reward.split import BY_GROUP, BY_PROMPT, HeldOut, hold_out
from rlhf_core.records import PreferencePair, RatedResponse
from tests.rlhf_core.learning.reward.simulated_people import simulated_pairs, simulated_thumbs


def judged(prompts: int, rater_of: int) -> tuple[list[RatedResponse], list[PreferencePair]]:
    """60 thumbs and 60 pairs on so many prompts; the rater goes by the prompt's number, modulo `rater_of`."""

    def named(at: int) -> dict[str, str]:
        return {"prompt_key": f"k{at % prompts}", "rater": f"r{at % prompts % rater_of}"}

    thumbs = [msgspec.structs.replace(each, **named(at)) for at, each in enumerate(simulated_thumbs(60, 1))]
    pairs = [msgspec.structs.replace(each, **named(at + 7)) for at, each in enumerate(simulated_pairs(60, 2))]
    return thumbs, pairs


def both(split: HeldOut, field: str) -> tuple[set[str], set[str]]:
    """What stands in a field of the judgements to learn from, and of those held out."""
    learned = {getattr(each, field) for each in split.ratings} | {getattr(each, field) for each in split.pairs}
    held = {getattr(each, field) for each in split.held_ratings}
    return learned, held | {getattr(each, field) for each in split.held_pairs}


def test_where_people_judge_their_own_prompts_neither_is_on_both_sides() -> None:
    split = hold_out(*judged(prompts=40, rater_of=20), share=0.25)
    assert split.rule == BY_GROUP
    for field in ("prompt_key", "rater"):
        learned, held = both(split, field)
        assert held
        assert not learned & held
    assert 20 <= len(split.held_ratings) + len(split.held_pairs) <= 45


def test_where_few_people_judge_everything_prompts_alone_are_held_out() -> None:
    split = hold_out(*judged(prompts=40, rater_of=2), share=0.25)
    assert split.rule == BY_PROMPT
    learned, held = both(split, "prompt_key")
    assert not learned & held
    assert both(split, "rater") == ({"r0", "r1"}, {"r0", "r1"})
    assert 20 <= len(split.held_ratings) + len(split.held_pairs) <= 40


def test_nothing_is_lost_and_the_seed_decides() -> None:
    thumbs, pairs = judged(prompts=40, rater_of=20)
    one, again, other = (hold_out(thumbs, pairs, 0.25, seed) for seed in (1, 1, 2))
    assert one == again
    assert one.held_ratings != other.held_ratings
    assert len(one.ratings) + len(one.held_ratings) == 60
    assert len(one.pairs) + len(one.held_pairs) == 60


def test_a_share_of_nothing_holds_nothing_out() -> None:
    split = hold_out(*judged(prompts=40, rater_of=20), share=0.0)
    assert (split.held_ratings, split.held_pairs, len(split.ratings)) == ([], [], 60)
