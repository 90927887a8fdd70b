"""Every error that Attune raises on purpose.

AttuneError
├── SettingsError          a setting is unknown or malformed; stops the process
├── InvalidRequestError    the caller's input; `param` names the field
│   └── ContextOverflowError   prompt and answer cannot fit the context
├── NotFoundError          no such interaction, comparison, policy version, ...
├── GoneError              existed, and its owner erased it
├── ConflictError          the thing is not in a state that allows this (still streaming, already running, moved on)
├── OverloadedError        the waiting queue is full, or the server drains
├── StoreUnavailableError  Redis did not answer; nothing was stored
├── ModelError             a model directory cannot be served (no tokenizer, no chat template, unsupported attention)
├── CheckpointError        unsealed, corrupt or mismatched checkpoint
├── StaleFenceError        a training that lost its lease tried to write
└── TrainingError          a loss is not finite, or there is nothing to learn from

Raised where it is known, caught at the edges: one table in `server/errors.py` turns them into HTTP statuses, the
command line prints the sentence.
"""

from __future__ import annotations


class AttuneError(Exception):
    """Base of all. `str(error)` is one sentence for a person, with the offending value."""


class SettingsError(AttuneError):
    pass


class InvalidRequestError(AttuneError):
    def __init__(self, message: str, *, param: str | None = None, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextOverflowError(InvalidRequestError):
    """Worded as OpenAI words it, because other people's clients look for these words."""

    def __init__(self, prompt_tokens: int, limit: int, *, param: str = "messages") -> None:
        super().__init__(
            f"this model's maximum context length is {limit} tokens, answer included, "
            f"but the prompt has {prompt_tokens} tokens",
            param=param,
            code="context_length_exceeded",
        )


class NotFoundError(AttuneError):
    pass


class GoneError(AttuneError):
    pass


class ConflictError(AttuneError):
    pass


class OverloadedError(AttuneError):
    pass


class StoreUnavailableError(AttuneError):
    pass


class ModelError(AttuneError):
    pass


class CheckpointError(AttuneError):
    pass


class StaleFenceError(AttuneError):
    pass


class TrainingError(AttuneError):
    pass
