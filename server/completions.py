"""The answers of a response in OpenAI's wire form: one JSON object, or a stream of chunks.

A stream sends no chunk before the first token; role and first text share one. It ends with a finish chunk for each
choice, the usage if asked for, and `[DONE]`; a stream that failed ends with an error frame and no `[DONE]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from rlhf_core.records import Interaction
from server.answer import Answer, AnswerSet
from server.errors import fault_of, openai_body
from server.frames import DONE, PING, ChoiceFrames, Form, encode, frame
from server.logprobs import LogprobWriter
from server.schemas import StreamOptions
from server.tokens import Speller


def whole(answers: AnswerSet, records: Sequence[Interaction], form: Form, *, logprobs: bool) -> bytes:
    """The body for answers that have ended and are stored."""
    choices = [
        {
            "index": index,
            **form.spoken(answer.text),
            "logprobs": writer.write(answer.generation.outputs)
            if (writer := _writer(answer, form, logprobs))
            else None,
            "finish_reason": record.finish_reason,
            "interaction_id": record.interaction_id,
        }
        for index, (answer, record) in enumerate(zip(answers.answers, records, strict=True))
    ]
    return encode(_envelope(answers.first, form.whole) | {"choices": choices, "usage": usage(answers)})


def usage(answers: AnswerSet, tokens: int | None = None) -> dict[str, Any]:
    """Token counts so far, or after `tokens` of the answers."""
    response = answers.tokens if tokens is None else tokens
    prompt, cached = answers.prompt_tokens, answers.cached_tokens
    counts: dict[str, Any] = {"prompt_tokens": prompt, "completion_tokens": response, "total_tokens": prompt + response}
    return counts | {"prompt_tokens_details": {"cached_tokens": cached}} if cached else counts


async def stream(answers: AnswerSet, form: Form, options: StreamOptions, *, logprobs: bool) -> AsyncIterator[bytes]:
    """The frames of answers whose first token is there."""
    envelope = _envelope(answers.first, form.chunk)
    choices = [
        ChoiceFrames(form, envelope, index, answer.interaction.interaction_id, _writer(answer, form, logprobs))
        for index, answer in enumerate(answers.answers)
    ]
    close = b',"usage":null}\n\n' if options.include_usage else b"}\n\n"
    sent = 0
    try:
        async for index, arrived in answers.arrivals():
            if isinstance(arrived, Interaction):
                yield choices[index].finish(arrived.finish_reason, close)
            elif not arrived:
                yield PING
            else:
                if options.continuous_usage_stats:
                    sent += len(arrived)
                    close = b',"usage":%b}\n\n' % encode(usage(answers, sent))
                if body := choices[index].tokens(arrived, close):
                    yield body
        if options.include_usage:
            yield frame(envelope | {"choices": [], "usage": usage(answers)})
        yield DONE
    except Exception as error:
        answers.fail(error)
        yield frame(openai_body(fault_of(error)))


def _envelope(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": answer.interaction.interaction_id,
        "object": kind,
        "created": int(answer.interaction.created_at),
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
    }


def _writer(answer: Answer, form: Form, wanted: bool) -> LogprobWriter | None:
    return form.logprobs(Speller(answer.generation.policy.tokenizer)) if wanted else None
