"""The scheduler, without tensors: sequences and integers only."""

from __future__ import annotations

import random
import subprocess
import sys
from typing import TYPE_CHECKING, cast

import pytest

from rlhf_core.engine.scheduler import Plan, Scheduler
from rlhf_core.engine.sequence import GenerationRequest, Sequence
from rlhf_core.errors import ConflictError, OverloadedError
from rlhf_core.records import Sampling

if TYPE_CHECKING:
    from rlhf_core.models.load import LoadedPolicy


class Weights:
    """Stands for a policy: the scheduler only compares identities."""

    policy_version = 1


def weights() -> LoadedPolicy:
    return cast("LoadedPolicy", Weights())


def scheduler(
    policy: LoadedPolicy | None = None, *, running: int = 4, waiting: int = 8, prefixes: int = 0
) -> Scheduler:
    return Scheduler(policy or weights(), max_running=running, max_waiting=waiting, max_prefix_tokens=prefixes)


def sequence(name: str, prompt: int = 3) -> Sequence:
    return Sequence(GenerationRequest(name, tuple(range(prompt)), Sampling()), max_tokens=10)


def run(plans: list[Plan]) -> None:
    for plan in plans:
        plan.commit()


def names(sequences: list[Sequence]) -> list[str]:
    return [s.request.request_id for s in sequences]


def test_importing_the_scheduler_does_not_load_torch() -> None:
    code = "import sys, rlhf_core.engine.scheduler, rlhf_core.engine.text; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_prompts_are_admitted_in_order_up_to_the_budget_of_the_step() -> None:
    subject = scheduler()
    for name in "abcd":
        subject.submit(sequence(name, prompt=4))
    # 10 tokens a step: a and b whole, 2 of c's 4; d waits.
    (plan,) = subject.schedule(10)
    assert [(s.sequence.request.request_id, s.slot, s.start, s.end) for s in plan.spans] == [
        ("a", 0, 0, 4),
        ("b", 1, 0, 4),
        ("c", 2, 0, 2),
    ]
    assert names(plan.drawing) == ["a", "b"]
    run([plan])
    (plan,) = subject.schedule(10)
    assert names(plan.decoding) == ["a", "b"]
    assert [(s.sequence.request.request_id, s.slot, s.start, s.end) for s in plan.spans] == [
        ("c", 2, 2, 4),
        ("d", 3, 0, 4),
    ]
    assert names(plan.drawing) == ["a", "b", "c", "d"]


def test_a_plan_that_was_not_committed_is_planned_again() -> None:
    subject = scheduler()
    subject.submit(sequence("a", prompt=3))
    (first,) = subject.schedule(2)
    (again,) = subject.schedule(2)
    assert [(s.start, s.end) for s in first.spans] == [(s.start, s.end) for s in again.spans] == [(0, 2)]


def test_no_more_run_than_max_running_over_both_lanes() -> None:
    subject = scheduler(running=3)
    subject.submit(sequence("old"))
    run(subject.schedule(100))
    subject.swap(weights())
    for name in "abc":
        subject.submit(sequence(name))
    old, new = subject.schedule(100)
    assert names(old.decoding) == ["old"]
    assert names(new.drawing) == ["a", "b"]
    assert subject.running == 3
    assert names(list(subject.waiting)) == ["c"]


def test_requests_beyond_free_slots_and_the_queue_are_refused() -> None:
    subject = scheduler(running=2, waiting=1)
    for name in "abc":
        subject.submit(sequence(name))
    with pytest.raises(OverloadedError, match="3 requests are waiting"):
        subject.submit(sequence("d"))
    run(subject.schedule(10))
    with pytest.raises(OverloadedError, match="1 requests are waiting"):
        subject.submit(sequence("d"))


def test_the_last_sequence_fills_the_slot_of_one_that_leaves() -> None:
    subject = scheduler()
    for name in "abcd":
        subject.submit(sequence(name))
    (plan,) = subject.schedule(100)
    run([plan])
    lane, moves = subject.remove(plan.drawing[1])
    assert moves == [(3, 1)]
    assert names(lane.running) == ["a", "d", "c"]
    assert subject.remove(lane.running[2])[1] == []


def test_a_sequence_that_still_reads_its_prompt_stays_last() -> None:
    subject = scheduler()
    for name in "abcd":
        subject.submit(sequence(name, prompt=3))
    # 11 tokens: a, b and c whole, 2 of d's 3.
    (plan,) = subject.schedule(11)
    run([plan])
    lane, moves = subject.remove(plan.drawing[0])
    assert moves == [(2, 0), (3, 2)]
    assert names(lane.running) == ["c", "b", "d"]
    assert names(lane.decoding()) == ["c", "b"]


def test_a_second_swap_is_refused_while_the_older_set_has_sequences() -> None:
    first = weights()
    subject = scheduler(first)
    subject.submit(sequence("a"))
    run(subject.schedule(100))
    subject.swap(weights())
    with pytest.raises(ConflictError, match="1 answers still run"):
        subject.swap(weights())
    old = subject.draining
    assert old is not None
    assert old.policy is first
    subject.remove(old.running[0])
    assert subject.drop_drained() is old
    subject.swap(weights())
    assert subject.draining is None


def test_lanes_stay_compact_and_in_slot_order_whatever_comes_and_goes() -> None:
    dice = random.Random(7)
    subject = scheduler(running=5, waiting=6)
    slots: dict[str, int] = {}
    for turn in range(400):
        if subject.has_room and dice.random() < 0.6:
            subject.submit(sequence(f"s{turn}", prompt=dice.randint(1, 15)))
        for plan in subject.schedule(7):
            read = sum(span.end - span.start for span in plan.spans)
            assert read <= 7
            assert [span.slot for span in plan.spans] == list(
                range(len(plan.decoding), len(plan.decoding) + len(plan.spans))
            )
            slots.update({s.request.request_id: i for i, s in enumerate(plan.lane.running)})
            plan.commit()
        running = subject.active.running
        # Only the last can still be reading, and every other one keeps the slot that its tokens were written to.
        assert not any(s.prefilling for s in running[:-1])
        assert [slots[s.request.request_id] for s in running] == list(range(len(running)))
        if running and dice.random() < 0.5:
            lane, moves = subject.remove(dice.choice(running))
            for source, target in moves:
                moved = lane.running[target].request.request_id
                assert slots[moved] == source
                slots[moved] = target


def member(name: str, group: str, prompt: int = 3) -> Sequence:
    return Sequence(GenerationRequest(name, tuple(range(prompt)), Sampling(), group=group), max_tokens=10)


def test_a_group_begins_only_when_there_is_a_slot_for_each_member() -> None:
    subject = scheduler(running=4)
    singles = [sequence(name) for name in "abc"]
    for each in (*singles, member("g1", "g"), member("g2", "g"), sequence("d")):
        subject.submit(each)
    run(subject.schedule(100))
    assert names(subject.active.running) == ["a", "b", "c"]
    subject.remove(singles[0])
    run(subject.schedule(100))
    assert names(subject.active.running) == ["c", "b", "g1", "g2"]


def test_a_group_larger_than_the_slots_begins_when_all_are_free() -> None:
    subject = scheduler(running=2)
    for name in ("g1", "g2", "g3"):
        subject.submit(member(name, "g"))
    run(subject.schedule(100))
    assert names(subject.active.running) == ["g1", "g2"]


def test_a_swap_waits_until_a_group_that_has_begun_is_complete() -> None:
    subject = scheduler()
    for name in ("g1", "g2"):
        subject.submit(member(name, "g", prompt=8))
    run(subject.schedule(8))
    assert names(subject.active.running) == ["g1"]
    with pytest.raises(ConflictError, match="group"):
        subject.swap(weights())
    run(subject.schedule(8))
    first = subject.active
    subject.swap(weights())
    assert subject.draining is first
    assert names(first.running) == ["g1", "g2"]


def test_prompts_that_are_not_read_yet_are_counted_where_there_is_a_slot() -> None:
    subject = scheduler(running=3)
    for name in "abcde":
        subject.submit(sequence(name, prompt=4))
    assert (subject.decoding, subject.unread) == (0, 3)
    run(subject.schedule(6))
    # a is read, b half, and c waits for its turn; d and e for a slot.
    assert (subject.decoding, subject.unread) == (1, 2)
