"""Slot values: which are held out, and that names have to be copied, not remembered."""

import random
import re

from rlhf_core.desk import slots


def test_slot_values_are_split_by_their_hash() -> None:
    rng = random.Random(3)
    for slot in ("name", "person", "account", "order", "amount", "town", "country", "dish", "thing", "sum"):
        assert not any(slots.is_held_out(slots.draw(slot, rng, held_out=False)) for _ in range(50))
        assert all(slots.is_held_out(slots.draw(slot, rng, held_out=True)) for _ in range(50))
    values = [str(number) for number in range(10_000)]
    # one in ten of 10000: 1000, with a standard deviation of sqrt(10000 * 0.1 * 0.9) = 30
    assert 880 < sum(map(slots.is_held_out, values)) < 1120


def test_most_names_are_drawn_once() -> None:
    rng = random.Random(5)
    names = [slots.draw("name", rng, held_out=False) for _ in range(1000)]
    assert len(set(names)) > 600


def test_every_value_has_the_shape_its_pattern_reads() -> None:
    rng = random.Random(7)
    for slot, pattern in slots.PATTERNS.items():
        values = [slots.draw(slot, rng, held_out=False) for _ in range(100)]
        assert all(re.fullmatch(pattern, value) for value in values), slot
