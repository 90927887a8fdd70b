"""Rows as tokens: prompts as serving has them, answers with their end token, nothing cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlhf_core.errors import InvalidRequestError
from rlhf_core.models.load import LoadedPolicy, render_prompt
from rlhf_core.records import Message
from rlhf_core.runs.encode import iterate_answers, read_demonstrations, read_prompts
from rlhf_core.runs.judgements import read_judgements
from rlhf_core.runs.tally import Tally
from tests.rlhf_core.runs.files import demonstration, write_jsonl

END = 1
"""The tiny model's `<|end|>`."""
PAIR = {"prompt": "hello", "chosen": "hi there", "rejected": "no"}


def data(tmp_path: Path, *rows: Any) -> list[Path]:
    return [write_jsonl(tmp_path / "rows.jsonl", rows)]


def judged(tmp_path: Path, policy: LoadedPolicy, *rows: Any, **options: Any) -> Any:
    return read_judgements(data(tmp_path, *rows), policy, Tally(**options), max_tokens=64)


def test_a_prompt_is_tokenised_as_serving_does_and_answers_end_with_the_end_token(
    tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    [], [pair] = judged(tmp_path, tiny_policy, PAIR)
    assert list(pair.prompt_token_ids) == render_prompt(tiny_policy.tokenizer, [Message("user", "hello")])
    assert tiny_policy.tokenizer.decode(list(pair.chosen_token_ids)) == "hi there<|end|>"
    assert pair.chosen_token_ids[-1] == pair.rejected_token_ids[-1] == END
    assert pair.chosen_token_ids.count(END) == 1


def test_what_the_template_writes_behind_the_end_token_is_no_part_of_the_answer(
    tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    import copy
    import dataclasses

    chatty = copy.deepcopy(tiny_policy.tokenizer)
    chatty.chat_template = chatty.chat_template.replace("'<|end|>' -}}", "'<|end|>\n' -}}")
    policy = dataclasses.replace(tiny_policy, tokenizer=chatty)
    [rating], [] = judged(tmp_path, policy, {"prompt": "hello", "completion": "hi", "label": True})
    assert chatty.decode(list(rating.token_ids)) == "hi<|end|>"
    [example] = read_demonstrations(data(tmp_path, demonstration()), policy, Tally(), max_tokens=64)
    assert example.token_ids[-1] == END
    assert example.response_mask[-1]


def test_an_end_token_that_the_template_does_not_write_is_added(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    import copy
    import dataclasses

    bare = copy.deepcopy(tiny_policy.tokenizer)
    bare.chat_template = (
        "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    )
    policy = dataclasses.replace(tiny_policy, tokenizer=bare)
    [rating], [] = judged(tmp_path, policy, {"prompt": "hello", "completion": "hi", "label": True})
    assert bare.decode(list(rating.token_ids)) == "hi<|end|>"


def test_an_answer_with_an_end_token_in_its_text_is_refused(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match="line 1: the answer has an end token in the middle"):
        judged(tmp_path, tiny_policy, {**PAIR, "chosen": "hi<|end|> there"})


def test_what_is_too_long_is_refused_with_its_numbers_or_skipped_never_cut(
    tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    long = demonstration(answer="hello " * 40)
    # 40 times " hello" and what frames it; the byte tokenizer knows no whole word of it.
    with pytest.raises(InvalidRequestError, match=r"line 2: it has \d+ tokens, and at most 64 fit, which --x raises"):
        read_demonstrations(data(tmp_path, demonstration(), long), tiny_policy, Tally(), max_tokens=64, raised_by="--x")
    tally = Tally(skip_bad=True)
    examples = read_demonstrations(data(tmp_path, demonstration(), long), tiny_policy, tally, max_tokens=64)
    assert (len(examples), tally.skipped) == (1, 1)


def test_only_approved_demonstrations_train_and_the_others_are_counted(
    tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    reviews = ["approved", "pending", "rejected", None]
    rows = [demonstration(answer=f"answer {at}", review=review) for at, review in enumerate(reviews)]
    tally = Tally()
    examples = read_demonstrations(data(tmp_path, *rows), tiny_policy, tally, max_tokens=64)
    texts = [tiny_policy.tokenizer.decode(list(each.token_ids)) for each in examples]
    assert ["answer 0" in texts[0], "answer 3" in texts[1], len(texts)] == [True, True, 2]
    assert tally.as_counts() == {"rows": 4, "used": 2, "skipped": 0, "unapproved": 2}


def test_when_no_row_can_be_used_the_files_are_named(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequestError, match=r"rows\.jsonl: of 1 rows none can be used"):
        read_demonstrations(data(tmp_path, demonstration(review="pending")), tiny_policy, Tally(), max_tokens=64)


@pytest.mark.parametrize(
    "row",
    [
        PAIR,
        {"prompt": "hello", "completion": "hi", "label": True},
        {"prompt": "hello"},
        # Nobody is to talk like what was reported.
        {"prompt": "hello", "completion": "you fool", "reasons": ["toxic"]},
    ],
)
def test_rows_that_demonstrate_nothing_are_refused_for_fine_tuning(
    row: dict[str, Any], tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequestError, match="and demonstrations are wanted"):
        read_demonstrations(data(tmp_path, row), tiny_policy, Tally(), max_tokens=64)


def test_a_prompt_is_what_stands_before_the_last_answer_whatever_the_form(
    tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    rows = [demonstration(), PAIR, {"prompt": "hello"}, {"prompt": [{"role": "user", "content": "hello"}]}]
    prompts = read_prompts(data(tmp_path, *rows), tiny_policy, Tally(), max_tokens=64)
    assert prompts == [tuple(render_prompt(tiny_policy.tokenizer, [Message("user", "hello")]))] * 4


def test_answers_keep_their_row(tiny_policy: LoadedPolicy, tmp_path: Path) -> None:
    row = {"prompt": "hello", "completion": "hi", "label": False, "mine": [1]}
    [answer] = iterate_answers(data(tmp_path, row), tiny_policy, Tally(), max_tokens=64)
    assert answer.content == row
    assert answer.up is False


def test_the_second_files_are_named_when_only_of_them_no_row_can_be_used(
    tiny_policy: LoadedPolicy, tmp_path: Path
) -> None:
    tally = Tally(skip_bad=True)
    read_prompts(data(tmp_path, PAIR, PAIR), tiny_policy, tally, max_tokens=64)
    shown = [write_jsonl(tmp_path / "shown.jsonl", [PAIR])]
    with pytest.raises(InvalidRequestError, match=r"shown\.jsonl: of 1 rows none can be used"):
        read_demonstrations(shown, tiny_policy, tally, max_tokens=64)
