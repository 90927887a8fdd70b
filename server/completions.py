"""An answer in OpenAI's wire form: one JSON object, or a stream of chunks.

A stream sends no chunk before the first token; role and first text share one. It ends with the finish chunk, the usage
if asked for, and `[DONE]`; a stream that failed ends with an error frame and no `[DONE]`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec

from rlhf_core.engine.sequence import StepOutput
from rlhf_core.records import FinishReason
from server.answers import Answer
from server.errors import fault_of, openai_body
from server.schemas import StreamOptions

DONE = b"data: [DONE]\n\n"
PING = b": ping\n\n"


def frame(value: dict[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + msgspec.json.encode(value) + b"\n\n"


def whole(answer: Answer, finish_reason: FinishReason | None, *, logprobs: bool) -> bytes:
    """The body of an answer that has ended and is stored."""
    choice: dict[str, Any] = {
        "index": 0,
        "message": {"role": "assistant", "content": answer.text, "refusal": None},
        "logprobs": _logprobs(answer, answer.generation.outputs) if logprobs else None,
        "finish_reason": finish_reason,
    }
    body = _envelope(answer, "chat.completion") | {"choices": [choice], "usage": usage(answer)}
    return msgspec.json.encode(body)


def usage(answer: Answer, tokens: int | None = None) -> dict[str, int]:
    """Token counts so far, or after the first `tokens` of the answer."""
    prompt = len(answer.generation.request.prompt_token_ids)
    response = len(answer.generation.outputs) if tokens is None else tokens
    return {"prompt_tokens": prompt, "completion_tokens": response, "total_tokens": prompt + response}


async def stream(answer: Answer, options: StreamOptions, *, logprobs: bool) -> AsyncIterator[bytes]:
    """The frames of an answer whose first token is there."""
    try:
        async for body in _frames(answer, options, logprobs=logprobs):
            yield body
    except Exception as error:
        yield frame(openai_body(fault_of(error)))


async def _frames(answer: Answer, options: StreamOptions, *, logprobs: bool) -> AsyncIterator[bytes]:
    envelope = _envelope(answer, "chat.completion.chunk")
    sent = 0
    unsent: list[StepOutput] = []
    async for batch in answer.generation.batches():
        if not batch:
            yield PING
            continue
        unsent += batch
        text = "".join(output.text for output in unsent)
        # A token may hold no whole character yet; only the first is worth a frame of its own then.
        if sent and not text and not (logprobs and batch[-1].finished):
            continue
        delta = {"content": text} if sent else {"role": "assistant", "content": text}
        sent += len(unsent)
        chunk = _chunk(envelope, delta, _logprobs(answer, unsent) if logprobs else None)
        if options.continuous_usage_stats:
            chunk["usage"] = usage(answer, sent)
        yield frame(chunk)
        unsent = []
    record = await answer.stored()
    yield frame(_chunk(envelope, {}, None, record.finish_reason))
    if options.include_usage:
        yield frame(envelope | {"choices": [], "usage": usage(answer)})
    yield DONE


def _chunk(
    envelope: dict[str, Any], delta: dict[str, str], logprobs: Any, finish_reason: str | None = None
) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
    return envelope | {"choices": [choice]}


def _envelope(answer: Answer, kind: str) -> dict[str, Any]:
    return {
        "id": answer.interaction.interaction_id,
        "object": kind,
        "created": int(answer.interaction.created_at),
        "model": answer.model,
        "system_fingerprint": answer.fingerprint,
    }


def _logprobs(answer: Answer, outputs: Sequence[StepOutput]) -> dict[str, Any]:
    """One entry a token, end token included: the logprob is that of the drawn token at the request's temperature."""
    decode = answer.generation.policy.tokenizer.decode
    content = []
    for output in outputs:
        token = decode([output.token_id])
        entry = {"token": token, "logprob": output.logprob, "bytes": list(token.encode()), "top_logprobs": []}
        content.append(entry)
    return {"content": content, "refusal": None}
