"""Rows to token ids, with the model's own chat template, a few hundred at a time.

A prompt is tokenised as serving does it, and an answer ends with its end token. Nothing is ever cut: what is longer
than it may be is refused or skipped with its numbers, and so is a row of the wrong form.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import InvalidRequestError, TrainingError
from rlhf_core.learning.conversations import SftExample, answer_tokens, mark_turns, render, tokenize, turn_texts
from rlhf_core.records import Message, TokenIds
from rlhf_core.runs.rows import DemonstrationRow, PairRow, PromptRow, RatingRow, Row, read_rows
from rlhf_core.runs.tally import Tally
from rlhf_core.runs.vocabulary import Reads

AT_ONCE: Final = 256
"""Rows whose texts go to the tokenizer in one call."""

Made = TypeVar("Made")


@dataclass(frozen=True)
class Answer:
    """A prompt with one answer, as tokens and as the row that it was."""

    content: Mapping[str, Any]
    up: bool | None
    prompt_token_ids: TokenIds
    token_ids: TokenIds


def read_demonstrations(
    paths: Sequence[Path], policy: Reads, tally: Tally, *, max_tokens: int, raised_by: str = ""
) -> list[SftExample]:
    """Conversations to imitate. Those that a review did not approve are counted and left out."""
    return Encoder(policy, tally, max_tokens, raised_by).all(paths, _demonstration_texts, _demonstration)


def read_prompts(paths: Sequence[Path], policy: Reads, tally: Tally, *, max_tokens: int) -> list[TokenIds]:
    """What rows of any form ask, up to where an answer begins; of a demonstration, up to its last answer."""
    return Encoder(policy, tally, max_tokens).all(paths, _prompt_texts, _prompt_ids)


def iterate_answers(paths: Sequence[Path], policy: Reads, tally: Tally, *, max_tokens: int) -> Iterator[Answer]:
    """Rows of one prompt and one completion, labelled or not, as they are read."""
    return Encoder(policy, tally, max_tokens).each(paths, _answer_texts, _answer)


class _LeftOutError(Exception):
    """The row is not to be used, and nothing is wrong with it."""


class Encoder:
    """What turns texts into tokens and bad rows into sentences."""

    def __init__(self, policy: Reads, tally: Tally, max_tokens: int, raised_by: str = "") -> None:
        self.tokenizer: PreTrainedTokenizerBase = policy.tokenizer
        self.ends = policy.end_token_ids
        self._tally = tally
        self._max_tokens = max_tokens
        self._raised_by = f", which {raised_by} raises" if raised_by else ""
        # One object per token id, whatever the number of its uses: a fifth of the memory.
        self._shared = list(range(max(len(policy.tokenizer), policy.vocab_size)))

    def all(
        self,
        paths: Sequence[Path],
        texts_of: Callable[[Encoder, Row], list[str]],
        make: Callable[[Encoder, Row, list[list[int]]], Made],
    ) -> list[Made]:
        """Every good row of the files. Raises InvalidRequestError for a bad one, or when none is left."""
        return list(self.each(paths, texts_of, make))

    def each(
        self,
        paths: Sequence[Path],
        texts_of: Callable[[Encoder, Row], list[str]],
        make: Callable[[Encoder, Row, list[list[int]]], Made],
    ) -> Iterator[Made]:
        """The same as they are read, so that no more than a part of the files is held."""
        rows, before, used = read_rows(paths, self._tally), self._tally.rows, 0
        while part := list(islice(rows, AT_ONCE)):
            for made in self._together(part, texts_of, make):
                used += 1
                yield made
        if not used:
            files = ", ".join(map(str, paths))
            raise InvalidRequestError(f"{files}: of {self._tally.rows - before} rows none can be used", param="data")

    def _together(
        self,
        rows: Sequence[Row],
        texts_of: Callable[[Encoder, Row], list[str]],
        make: Callable[[Encoder, Row, list[list[int]]], Made],
    ) -> Iterator[Made]:
        rendered = [(row, texts) for row in rows if (texts := self._minding(row, texts_of, row)) is not None]
        encoded = iter(tokenize(self.tokenizer, [text for _, texts in rendered for text in texts]))
        for row, texts in rendered:
            made = self._minding(row, make, row, [next(encoded) for _ in texts])
            if made is not None:
                yield made

    def _minding(self, row: Row, work: Callable[..., Made], *arguments: object) -> Made | None:
        """The result of `work`, or None for a row that is refused or left out."""
        try:
            return work(self, *arguments)
        except TrainingError as error:
            self._tally.refuse(row.place, str(error))
        except _LeftOutError:
            self._tally.unapproved += 1
        return None

    def ids(self, token_ids: Iterable[int]) -> TokenIds:
        return tuple(map(self._shared.__getitem__, token_ids))

    def check_length(self, tokens: int) -> None:
        if tokens > self._max_tokens:
            raise TrainingError(f"it has {tokens} tokens, and at most {self._max_tokens} fit{self._raised_by}")

    def answer(self, prompt: list[int], whole: list[int]) -> TokenIds:
        """The answer's tokens, its end token last."""
        found = answer_tokens(self.tokenizer, prompt, whole, self.ends)
        self.check_length(len(prompt) + len(found))
        return self.ids(found)

    def texts(self, prompt: Sequence[Message], *answers: str) -> list[str]:
        """The prompt rendered up to where the answer begins, then with each of the answers."""
        turns = _turns(prompt)
        whole = [render(self.tokenizer, [*turns, _turn("assistant", each)], to_answer=False) for each in answers]
        return [render(self.tokenizer, turns, to_answer=True), *whole]


def _demonstration_texts(encoder: Encoder, row: Row) -> list[str]:
    if isinstance(row, RatingRow) and row.up is None and not row.is_remark:
        return turn_texts(encoder.tokenizer, [*_turns(row.prompt), _turn("assistant", row.completion)])
    if not isinstance(row, DemonstrationRow):
        raise TrainingError(f"it is {form_of(row)}, and demonstrations are wanted")
    if row.approved is False:
        raise _LeftOutError
    return turn_texts(encoder.tokenizer, _turns(row.messages))


def _demonstration(encoder: Encoder, _row: Row, encoded: list[list[int]]) -> SftExample:
    example = mark_turns(encoder.tokenizer, encoded, encoder.ends)
    encoder.check_length(len(example.token_ids))
    return SftExample(encoder.ids(example.token_ids), example.response_mask)


def _prompt_texts(encoder: Encoder, row: Row) -> list[str]:
    return encoder.texts(_prompt_of(row))


def _prompt_of(row: Row) -> tuple[Message, ...]:
    if not isinstance(row, DemonstrationRow):
        return row.prompt
    if row.approved is False:
        raise _LeftOutError
    answers = [at for at, message in enumerate(row.messages) if message.role == "assistant"]
    prompt = row.messages[: answers[-1]] if answers else row.messages
    if not prompt:
        raise TrainingError("nothing stands before its answer")
    return prompt


def _prompt_ids(encoder: Encoder, _row: Row, encoded: list[list[int]]) -> TokenIds:
    encoder.check_length(len(encoded[0]))
    return encoder.ids(encoded[0])


def _answer_texts(encoder: Encoder, row: Row) -> list[str]:
    if not isinstance(row, RatingRow):
        raise TrainingError(f"it is {form_of(row)}, and a prompt with a completion is wanted")
    return encoder.texts(row.prompt, row.completion)


def _answer(encoder: Encoder, row: Row, encoded: list[list[int]]) -> Answer:
    assert isinstance(row, RatingRow)
    return Answer(row.content, row.up, encoder.ids(encoded[0]), encoder.answer(encoded[0], encoded[1]))


def form_of(row: Row) -> str:
    if isinstance(row, PairRow):
        return "a preference pair"
    if isinstance(row, PromptRow):
        return "a prompt alone"
    if isinstance(row, DemonstrationRow):
        return "a demonstration"
    if row.is_remark:
        return "a report or a review"
    return "an answer without a label" if row.up is None else "an answer with a label"


def _turns(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [_turn(message.role, message.content) for message in messages]


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}
