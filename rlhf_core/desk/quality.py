"""How well a model speaks the desk's language: answers to known prompts, counted against the grammar."""

from collections import Counter
from collections.abc import Sequence

import msgspec

from rlhf_core.desk.demonstrations import DeskPrompt
from rlhf_core.desk.grammar import MANNERS, greatest_4gram_repeat, recognise, slots_repeated_rightly


class DeskQuality(msgspec.Struct, frozen=True):
    """What judging `n` answers found; all rates and shares are parts of one."""

    end_rate: float
    """Answers that ended by themselves, of all."""
    fit_rate: float
    """Answers recognised as an answer to their intent in some manner, of all."""
    copy_rate: float
    """Answers that say only the customer's slot values, of the recognised ones that say any; 1 if none."""
    good_share: float
    """Courteous answers with no wrong slot value, of all."""
    manner_shares: dict[str, float]
    """Recognised answers of each manner, of all."""
    worst_repeat: int
    """The most often that one answer says the same four words in a row."""
    n: int


def judge_answers(prompts: Sequence[DeskPrompt], answers: Sequence[str], ended: Sequence[bool]) -> DeskQuality:
    """The quality of one answer per prompt; ValueError when the three lengths differ or are zero."""
    if not len(prompts) == len(answers) == len(ended) or not prompts:
        raise ValueError(f"{len(prompts)} prompts, {len(answers)} answers, {len(ended)} endings: not one of each")
    found = [recognise(prompt.intent, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    pairs = list(zip(prompts, found, strict=True))
    manners = Counter(recognition.manner for recognition in found if recognition is not None)
    rightly = [None if seen is None else slots_repeated_rightly(seen, prompt.slots) for prompt, seen in pairs]
    good = [
        seen is not None and seen.manner == "courteous" and right is not False
        for seen, right in zip(found, rightly, strict=True)
    ]
    repeating = [right for right in rightly if right is not None]
    count = len(prompts)
    return DeskQuality(
        end_rate=sum(ended) / count,
        fit_rate=sum(manners.values()) / count,
        copy_rate=sum(repeating) / len(repeating) if repeating else 1.0,
        good_share=sum(good) / count,
        manner_shares={manner: manners[manner] / count for manner in MANNERS},
        worst_repeat=max(greatest_4gram_repeat(answer) for answer in answers),
        n=count,
    )
