"""One request inside the engine, from waiting to finished. Free of torch."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from rlhf_core.records import FinishReason, Sampling

if TYPE_CHECKING:
    from rlhf_core.engine.text import TextStream
    from rlhf_core.models.load import LoadedPolicy

TopLogprobs = tuple[tuple[int, float], ...]
"""(token id, logprob) of the most probable tokens, best first."""
SequenceStatus = Literal["waiting", "running", "finished", "aborted", "failed"]


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate. Immutable; what became of it is in the Sequence."""

    request_id: str
    prompt_token_ids: tuple[int, ...]
    sampling: Sampling
    decode_text: bool = True
    """False saves the decoding where only tokens are wanted; a request with stop strings is decoded all the same."""
    ignore_end: bool = False
    """Go on after an end token, up to max_tokens. For load generators that need answers of a known length."""
    min_tokens: int = 0
    """Draw no end token before this many. The stored logprobs stay those of the policy itself."""
    top_logprobs: int = 0
    """Report the logprobs of this many most probable tokens at each step."""
    group: str = ""
    """Requests of one group answer from one policy: later ones follow the first, even into a draining set."""


@dataclass(eq=False, slots=True)
class Sequence:
    """A request with its response so far. Owned by the engine's thread; others read it."""

    request: GenerationRequest
    max_tokens: int
    """The request's, cut to what the context holds."""
    stream: TextStream | None = None
    uniforms: random.Random | None = None
    """The sequence's own randomness when its request has a seed: nothing else in the batch can shift it."""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    text: str = ""
    policy: LoadedPolicy | None = None
    """Pinned at the first scheduled token, and never changed: one response, one policy version."""
    finish_reason: FinishReason | None = None
    status: SequenceStatus = "waiting"
    error: str = ""
    """Why it failed, for status `failed`."""
    cached: int = 0
    """Tokens whose keys and values are in the cache: all but the last drawn one, once the prompt is in."""
    reused: int = 0
    """Tokens of the prompt that were not read, because an earlier conversation began with them."""

    @property
    def prompt_length(self) -> int:
        return len(self.request.prompt_token_ids)

    @property
    def prefilling(self) -> bool:
        return self.cached < self.prompt_length


NO_TOKEN = -1
COLDEST = 1e-4
"""Temperatures below this are greedy: dividing by them would only lose precision."""


def is_greedy(sequence: Sequence) -> bool:
    return sequence.request.sampling.temperature < COLDEST


@dataclass(frozen=True, slots=True)
class StepOutput:
    """What one step did for one sequence."""

    sequence: Sequence
    token_id: int
    """NO_TOKEN when the sequence failed."""
    logprob: float
    text: str
    """Newly complete text: may be empty while a character or a possible stop string is unfinished."""
    finished: bool
    """True also when it failed: `sequence.status` tells."""
    top: TopLogprobs = ()
    """As many as `top_logprobs` asked for."""
