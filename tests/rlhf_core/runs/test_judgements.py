"""What files say of answers: sides, ties, and reports and reviews without a thumb."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_core.errors import InvalidRequestError
from rlhf_core.models.load import LoadedPolicy
from rlhf_core.runs.judgements import read_evidence, read_judgements
from rlhf_core.runs.tally import Tally
from tests.rlhf_core.runs.files import write_jsonl

PAIR = {"prompt": "hello", "chosen": "hi there", "rejected": "no"}
ANSWER = {"prompt": "hello", "completion": "hi"}


def data(tmp_path: Path, *rows: Any) -> list[Path]:
    return [write_jsonl(tmp_path / "rows.jsonl", rows)]


def judged(tmp_path: Path, policy: LoadedPolicy, *rows: Any) -> Any:
    return read_judgements(data(tmp_path, *rows), policy, Tally(), max_tokens=64)


def test_of_a_tie_the_first_record_is_the_answer_on_the_left(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    [], pairs = judged(tmp_path, tiny_policy, *({**PAIR, "tie": True, "side": side} for side in ("left", "right")))
    said = [tiny_policy.tokenizer.decode(list(each.chosen_token_ids)) for each in pairs]
    # `side` says where "chosen" was shown: with right, the rejected one stood on the left.
    assert said == ["hi there<|end|>", "no<|end|>"]
    assert [each.chosen_side for each in pairs] == ["left", "left"]


def test_pairs_that_name_no_side_get_one_by_chance(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    [], pairs = judged(tmp_path, tiny_policy, *([PAIR] * 200))
    left = sum(each.chosen_side == "left" for each in pairs)
    # Binomial(200, 1/2) has standard deviation 7.07; four of them either way.
    assert 72 <= left <= 128


def test_reasons_without_a_label_are_a_report_or_a_review(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    reasons = (["toxic"], ["bias:ok", "accuracy:flag"])
    rows = [PAIR, {**ANSWER, "label": True, "reasons": ["helpful"]}, *({**ANSWER, "reasons": each} for each in reasons)]
    read = read_evidence(data(tmp_path, *rows), tiny_policy, Tally(), max_tokens=64)
    assert (len(read.pairs), len(read.ratings)) == (1, 1)
    assert [each.kind for each in read.remarks] == ["report", "review"]
    assert [list(each.reasons) for each in read.remarks] == list(reasons)
    [rating] = read.ratings
    for remark in read.remarks:
        assert remark.prompt_token_ids == rating.prompt_token_ids
        assert remark.token_ids == rating.token_ids
        assert remark.prompt_key == rating.prompt_key


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ANSWER, "it is an answer without a label, and judgements"),
        ({**ANSWER, "reasons": []}, "it is an answer without a label, and judgements"),
        ({**ANSWER, "reasons": ["rude"]}, "reason 'rude' is not one of accuracy:flag, accuracy:ok, accurate"),
        ({**ANSWER, "label": True, "reasons": ["toxic"]}, "reason 'toxic' is not one of accurate, biased"),
    ],
)
def test_what_says_nothing_that_is_known_is_refused(
    row: dict[str, Any], reason: str, tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match=reason):
        read_evidence(data(tmp_path, row), tiny_policy, Tally(), max_tokens=64)


def test_who_learns_from_verdicts_alone_takes_no_remark(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"judgements \(pairs or thumbs\) are wanted"):
        judged(tmp_path, tiny_policy, {**ANSWER, "reasons": ["toxic"]})
