"""Rows: every form that is read, and every way in which one is refused, with file, line and reason."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from rlhf_core.errors import InvalidRequestError
from rlhf_core.records import Message
from rlhf_core.runs.data_files import BadRowError
from rlhf_core.runs.rows import DemonstrationRow, PairRow, PromptRow, RatingRow, Row, _time, read_rows
from rlhf_core.runs.tally import Tally
from tests.rlhf_core.runs.files import demonstration, write_jsonl

HELLO = (Message("user", "hello"),)
TURN = {"role": "user", "content": "hello"}
SAID = {"role": "assistant", "content": "hi"}


def read(tmp_path: Path, *rows: Any, skip_bad: bool = False) -> tuple[list[Row], Tally]:
    tally = Tally(skip_bad=skip_bad)
    return list(read_rows([write_jsonl(tmp_path / "rows.jsonl", rows)], tally)), tally


def test_messages_are_a_demonstration_and_a_review_decides_about_it(tmp_path: Path) -> None:
    rows, _ = read(tmp_path, demonstration(), demonstration(review="approved"), demonstration(review="pending"))
    assert all(isinstance(row, DemonstrationRow) for row in rows)
    assert [getattr(row, "approved", "") for row in rows] == [None, True, False]


def test_a_pair_may_be_strings_messages_or_whole_conversations(tmp_path: Path) -> None:
    other = {"role": "assistant", "content": "no"}
    rows, _ = read(
        tmp_path,
        {"prompt": "hello", "chosen": "hi", "rejected": "no"},
        {"prompt": [TURN], "chosen": [SAID], "rejected": [other]},
        {"chosen": [TURN, SAID], "rejected": [TURN, other]},
    )
    for row in rows:
        assert isinstance(row, PairRow)
        assert (row.prompt, row.chosen, row.rejected) == (HELLO, "hi", "no")


def test_what_pairs_may_say_besides_is_kept(tmp_path: Path) -> None:
    more = {"rater": 7, "side": "left", "margin": 2, "created_at": "2026-11-01T00:00:00+00:00", "reasons": ["clear"]}
    [row], _ = read(tmp_path, {"prompt": "hello", "chosen": "hi", "rejected": "no", "other": 1, **more})
    assert isinstance(row, PairRow)
    # 2026-11-01 is 20,758 days after 1970-01-01: 20758 * 86400 seconds.
    assert (row.rater, row.side, row.margin, row.created_at) == ("7", "left", 2.0, 20758 * 86400.0)
    assert (row.reasons, row.tie) == (("clear",), False)


@pytest.mark.parametrize(("label", "up"), [(True, True), (0, False), ("up", True), ("down", False), (None, None)])
def test_a_completion_with_a_label_is_a_thumb(label: object, up: bool | None, tmp_path: Path) -> None:
    [row], _ = read(tmp_path, {"prompt": "hello", "completion": "hi", "label": label})
    assert isinstance(row, RatingRow)
    assert (row.prompt, row.completion, row.up) == (HELLO, "hi", up)


def test_a_prompt_alone_is_something_to_answer(tmp_path: Path) -> None:
    [row], _ = read(tmp_path, {"prompt": "hello"})
    assert isinstance(row, PromptRow)


PAIR = {"prompt": "hello", "chosen": "hi", "rejected": "no"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([1], "it is a list, not an object"),
        (
            {"prompt": "hello", "completion": "hi", "label": True, "reasons": [{"x": 1}]},
            "reason {'x': 1} is not one of",
        ),
        (
            {"prompt": "hello", "chosen": "hi", "rejected": "no", "margin": 10**400},
            "margin is an integer of 401 digits",
        ),
        ({"text": "hello"}, "its columns are text; the known forms are messages"),
        ({"messages": "hello"}, "messages is a string, not a list"),
        ({"messages": []}, "messages is an empty list"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\[0\] has the role 'robot'"),
        ({"messages": [{"role": "user", "content": 3}]}, r"messages\[0\] has content that is a number"),
        (demonstration(review="good"), "review is 'good'"),
        ({"prompt": "hello", "chosen": "hi"}, "it has chosen and no rejected"),
        ({"chosen": "hi", "rejected": "no"}, "must be whole conversations"),
        ({"chosen": [TURN, SAID], "rejected": [SAID]}, "must be alike up to their last message"),
        ({**PAIR, "rejected": "hi"}, "chosen and rejected are the same"),
        ({**PAIR, "side": "top"}, "side is 'top'"),
        ({**PAIR, "tie": "yes"}, "tie is 'yes', not true or false"),
        ({**PAIR, "margin": -1}, "margin is -1.0"),
        ({**PAIR, "tie": True, "margin": 1}, "it is a tie with a margin"),
        ({**PAIR, "reasons": ["nice"]}, "reason 'nice' is not one of"),
        ({**PAIR, "created_at": "yesterday"}, "created_at is 'yesterday'"),
        ({**PAIR, "prompt": " "}, "its prompt is empty"),
        ({**PAIR, "prompt": [SAID]}, "its prompt ends in an assistant message"),
        ({"prompt": "hello", "completion": ""}, "its completion is empty"),
        ({"prompt": "hello", "completion": "hi", "label": "good"}, "label is 'good'"),
        ({"completion": "hi"}, "it has a completion and no prompt"),
        ({"prompt": "hello", "label": True}, "it has a label and no completion"),
    ],
)
def test_a_bad_row_is_refused_with_file_line_and_reason(row: Any, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=rf"rows\.jsonl, line 2: .*{reason}"):
        read(tmp_path, demonstration(), row)


def test_bad_rows_are_skipped_and_counted_when_asked(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", [demonstration(), {"text": 1}, demonstration()])
    path.write_text(path.read_text() + "{broken\n\n")
    tally = Tally(skip_bad=True)
    assert len(list(read_rows([path], tally))) == 2
    assert (tally.rows, tally.skipped, tally.used) == (4, 2, 2)
    assert "line 4: it is not JSON" in tally.examples[1]


def test_parquet_gives_the_rows_that_jsonl_gives(tmp_path: Path) -> None:
    contents = [demonstration(), {**PAIR, "rater": "a"}, {"prompt": "hello", "completion": "hi", "label": True}]
    from_jsonl, _ = read(tmp_path, *contents)
    # A table has every column in every row; what a row lacks is null.
    columns = {name for content in contents for name in content}
    table = pyarrow.Table.from_pylist([{name: content.get(name) for name in columns} for content in contents])
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    from_parquet = list(read_rows([tmp_path / "rows.parquet"], Tally()))
    for ours, theirs in zip(from_jsonl, from_parquet, strict=True):
        ignored = {"place", "content"}
        assert type(ours) is type(theirs)
        for name in set(ours.__struct_fields__) - ignored:
            assert getattr(ours, name) == getattr(theirs, name)
    assert str(from_parquet[2].place).endswith("rows.parquet, row 3")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("none.jsonl", None, "there is no data file"),
        ("rows.csv", "a,b", "neither JSONL"),
        ("empty.jsonl", "\n", "holds no rows"),
        ("rows.parquet", "not parquet", "cannot be read as Parquet"),
    ],
)
def test_a_file_that_is_no_data_is_refused_by_name(name: str, content: str | None, said: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InvalidRequestError, match=said):
        list(read_rows([tmp_path / name], Tally()))


def test_a_date_that_no_clock_has_shown_is_a_bad_row() -> None:
    with pytest.raises(BadRowError, match="no time that a clock has shown"):
        _time(datetime(1, 1, 1))
