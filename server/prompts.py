"""The prompts of a text completion: text or token ids, one or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlhf_core.errors import ContextOverflowError, InvalidRequestError
from server.schemas import PromptItem
from server.serving import Serving


@dataclass(frozen=True, slots=True)
class Prompt:
    text: str
    token_ids: tuple[int, ...]


Given = str | tuple[int, ...]
"""A prompt as it came."""


def given_prompts(prompt: str | tuple[PromptItem, ...]) -> list[Given]:
    """The prompts one by one. Raises InvalidRequestError for a mixture of kinds, and for none at all."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidRequestError("prompt is empty", param="prompt")
    numbers = [item for item in prompt if isinstance(item, int)]
    if len(numbers) == len(prompt):
        return [tuple(numbers)]
    if numbers or len({type(item) for item in prompt}) > 1:
        raise InvalidRequestError("prompt mixes texts, token ids and lists of token ids", param="prompt")
    return [item for item in prompt if not isinstance(item, int)]


async def read_prompts(serving: Serving, given: list[Given]) -> list[Prompt]:
    """Tokenise texts, with the special tokens that the tokenizer itself adds, and check token ids.

    Raises InvalidRequestError for an empty prompt and for tokens that do not exist, ContextOverflowError.
    """
    for index, item in enumerate(given):
        _check_known(f"prompt[{index}]" if len(given) > 1 else "prompt", item, serving.policy.vocab_size)
    prompts = await serving.with_tokenizer(lambda tokenizer: [_read(tokenizer, item) for item in given])
    for prompt in prompts:
        if not prompt.token_ids:
            raise InvalidRequestError("prompt has no tokens", param="prompt")
        if len(prompt.token_ids) >= serving.max_context:
            raise ContextOverflowError(len(prompt.token_ids), serving.max_context, param="prompt")
    return prompts


def _check_known(place: str, item: Given, vocabulary: int) -> None:
    if isinstance(item, str):
        return
    for token_id in item:
        if not 0 <= token_id < vocabulary:
            message = f"{place} has the token id {token_id}; this model knows 0 to {vocabulary - 1}"
            raise InvalidRequestError(message, param=place)


def _read(tokenizer: Any, item: Given) -> Prompt:
    if isinstance(item, str):
        return Prompt(item, tuple(tokenizer.encode(item)))
    return Prompt(tokenizer.decode(list(item)), item)
