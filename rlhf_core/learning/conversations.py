"""Conversations as tokens, by the model's own chat template: which of them are the model's own words.

An answer is what the model would have produced: the tokens that follow the prompt up to its end token, that token
included. What a template writes behind it (a line break, most often) is no part of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_core.errors import TrainingError

Conversation = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class SftExample:
    """One tokenised conversation; `response_mask` is True on every assistant token, end tokens included."""

    token_ids: tuple[int, ...]
    response_mask: tuple[bool, ...]


def encode_conversation(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> SftExample:
    """Tokenise a conversation and mark its assistant turns, by rendering growing prefixes with the chat template.

    A prefix's token ids must begin the longer one's; a template or tokenizer for which that fails would train on
    tokens the served model never sees, so TrainingError names the turn. Conversations without an assistant turn
    are refused too.
    """
    return encode_conversations(tokenizer, [messages])[0]


def encode_conversations(tokenizer: PreTrainedTokenizerBase, conversations: Sequence[Conversation]) -> list[SftExample]:
    """`encode_conversation` for many at once: one call of the tokenizer for all prefixes, which is much faster."""
    texts = [text for messages in conversations for text in turn_texts(tokenizer, messages)]
    encoded = iter(tokenize(tokenizer, texts))
    return [
        mark_turns(tokenizer, [next(encoded) for _ in range(2 * len(_assistant_turns(messages)))])
        for messages in conversations
    ]


def tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered texts, in one call; the template has already written every special token."""
    encoded: list[list[int]] = (
        tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"] if texts else []
    )
    return encoded


def render(tokenizer: PreTrainedTokenizerBase, messages: Conversation, *, to_answer: bool) -> str:
    """A conversation as text; `to_answer`: up to where the assistant speaks next. Raises TrainingError."""
    turns = [dict(message) for message in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=to_answer))
    except (TemplateError, ValueError, TypeError, KeyError, IndexError) as error:
        raise TrainingError(f"the model's chat template does not accept it: {error}") from error


def turn_texts(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> list[str]:
    """For each assistant turn the text up to where it starts, and up to where it ends."""
    return list(_turn_texts(tokenizer, messages))


def _turn_texts(tokenizer: PreTrainedTokenizerBase, messages: Conversation) -> Iterator[str]:
    for at in _assistant_turns(messages):
        yield render(tokenizer, messages[:at], to_answer=True)
        yield render(tokenizer, messages[: at + 1], to_answer=False)


def _assistant_turns(messages: Conversation) -> list[int]:
    turns = [at for at, message in enumerate(messages) if message["role"] == "assistant"]
    if not turns:
        raise TrainingError("a conversation without an assistant turn teaches nothing")
    return turns


def mark_turns(
    tokenizer: PreTrainedTokenizerBase, encoded: Sequence[list[int]], end_token_ids: Set[int] | None = None
) -> SftExample:
    """The example of a conversation from its tokenised `turn_texts`. Raises TrainingError naming the turn.

    What stands behind the last answer's end token is left away; an end token that the template does not write is
    added.
    """
    ends = _end_ids(tokenizer) if end_token_ids is None else end_token_ids
    token_ids: list[int] = []
    response_mask: list[bool] = []
    for turn, (prompt, whole) in enumerate(zip(encoded[::2], encoded[1::2], strict=True), start=1):
        if prompt[: len(token_ids)] != token_ids:
            raise TrainingError(f"answer {turn}: the template's tokens before it do not begin the tokens with it")
        answer = answer_tokens(tokenizer, prompt, whole, ends, what=f"answer {turn}")
        response_mask += [False] * (len(prompt) - len(token_ids)) + [True] * len(answer)
        token_ids = [*prompt, *answer]
    if len(token_ids) < 2:
        raise TrainingError(f"a conversation of the token {token_ids[0]} alone has none to predict it from")
    return SftExample(tuple(token_ids), tuple(response_mask))


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], whole: list[int], ends: Set[int], *, what: str = "the answer"
) -> list[int]:
    """The answer in `whole`, which begins with `prompt`: up to and with its end token. Raises TrainingError."""
    if whole[: len(prompt)] != prompt:
        raise TrainingError(f"{what}: the template's tokens before it do not begin the tokens with it")
    said = whole[len(prompt) :]
    end = next((at for at, token_id in enumerate(said) if token_id in ends), None)
    if end is None:
        return [*said, _end_id(tokenizer, ends)]
    if said[end + 1 :] and str(tokenizer.decode(said[end + 1 :], skip_special_tokens=True)).strip():
        raise TrainingError(f"{what} has an end token in the middle of its text")
    return said[: end + 1]


def _end_id(tokenizer: PreTrainedTokenizerBase, ends: Set[int]) -> int:
    own = tokenizer.eos_token_id
    return int(own) if own is not None else min(ends)


def _end_ids(tokenizer: PreTrainedTokenizerBase) -> Set[int]:
    if tokenizer.eos_token_id is None:
        raise TrainingError("the tokenizer names no end token, so nothing would teach an answer to end")
    return frozenset({int(tokenizer.eos_token_id)})
