"""The nouns of the loop: what crosses a process boundary, in Redis and on disk.

Every record is one frozen msgspec struct, stored as JSON and validated where it enters. A later field gets a default,
so records written by an earlier release still load. Times are Unix seconds (float). This module imports nothing that
computes: reading a record never loads torch.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

TokenIds = tuple[int, ...]
Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length"]
InteractionStatus = Literal["streaming", "done", "aborted", "error"]
RatingValue = Literal["up", "down"]
ChoiceValue = Literal["left", "right", "tie", "both_bad", "skip"]
Side = Literal["left", "right"]
FeedbackKind = Literal["rating", "comparison", "report", "review"]
RemarkKind = Literal["report", "review"]
ReportCategory = Literal["toxic", "bias", "privacy", "illegal", "self_harm", "other"]
Reviewed = Literal["ok", "flag"]
JobKind = Literal["reward", "policy"]
JobState = Literal["queued", "running", "done", "rejected", "failed", "dead"]
CheckpointKind = Literal["policy", "reward"]
CheckpointState = Literal["candidate", "rejected", "accepted", "live", "retired"]

REASONS_DOWN = (
    "inaccurate",
    "unhelpful",
    "ignored_instructions",
    "harmful",
    "biased",
    "refused_wrongly",
    "too_long",
    "too_short",
    "tone",
    "other",
)
REASONS_UP = ("accurate", "helpful", "clear", "followed_instructions", "right_tone", "creative", "other")
REASONS = frozenset(REASONS_DOWN) | frozenset(REASONS_UP)
"""Stable keys, never translated labels: a stored reason must mean the same in every language."""


REVIEWED = ("accuracy", "toxicity", "bias", "unhelpfulness")
"""What a reviewer looks at in an answer. Said of each, as a reason: `accuracy:ok`, `bias:flag`."""
REMARKS = frozenset(get_args(ReportCategory)) | {f"{name}:{said}" for name in REVIEWED for said in get_args(Reviewed)}
"""The reasons of reports and reviews."""


class Message(msgspec.Struct, frozen=True):
    """One turn of a conversation, as the chat template sees it."""

    role: Role
    content: str


class Sampling(msgspec.Struct, frozen=True, kw_only=True):
    """How a response was drawn. Stored with it: a logprob means nothing without its temperature."""

    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 is off."""
    min_p: float = 0.0
    """Leave out tokens less probable than this share of the most probable one. 0 is off."""
    presence_penalty: float = 0.0
    """Taken off the logit of every token that the response already has."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token once for each time that the response already has it."""
    max_tokens: int = 256
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Interaction(msgspec.Struct, frozen=True, kw_only=True):
    """One served prompt and response. Written before the first token, completed before the last byte.

    Token ids and logprobs are those the engine produced; nothing downstream tokenises text again.
    """

    interaction_id: str
    """`chatcmpl-` and a UUIDv7 in hex; the completion id that the client sees."""
    created_at: float
    status: InteractionStatus = "streaming"
    conversation_id: str = ""
    rater: str = "anonymous"
    """Pseudonym of the person who asked (HMAC of `safety_identifier` or `user`), never the name itself."""
    messages: tuple[Message, ...] = ()
    response: str = ""
    prompt_token_ids: TokenIds = ()
    token_ids: TokenIds = ()
    """The response, including the end token when the policy emitted it."""
    logprobs: tuple[float, ...] = ()
    """Per response token, nats: log-softmax(logits / temperature) at the drawn token; at temperature 0, of logits.
    Penalties and what top_p, top_k and min_p left out do not enter: these are the policy's own."""
    sampling: Sampling = Sampling()
    policy_version: int = 0
    checkpoint_id: str = ""
    weights_sha256: str = ""
    finish_reason: FinishReason | None = None
    completed_at: float | None = None
    first_token_at: float | None = None
    comparison_id: str | None = None
    stored: bool = True
    """False when the caller sent `store: false`: content fields are empty, and feedback counts but never trains."""
    metadata: dict[str, str] = {}


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of the append-only log: a judgement, its change, or its withdrawal. Never edited.

    `target` is a comparison id for a choice and an interaction id for all else. At most one entry per
    (kind, target, rater) is current; a later one names the one that it replaces in `supersedes`.
    """

    event_id: str
    kind: FeedbackKind
    target: str
    rater: str
    created_at: float
    value: RatingValue | ChoiceValue | Literal["made"] | None
    """None withdraws. A report or a review is made, and says what it says in its reasons."""
    reasons: tuple[str, ...] = ()
    comment: str = ""
    supersedes: str | None = None
    policy_version: int = 0
    """Version of the rated answer; of the left answer for a choice."""
    trains: bool = True
    """False for what may be counted but not learned from (content not stored, a choice changed after the reveal)."""


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """Two answers to one prompt, shown blind. The server draws and stores the sides."""

    comparison_id: str
    created_at: float
    rater: str
    messages: tuple[Message, ...]
    left: str
    """Interaction id of the answer shown on the left."""
    right: str
    side_seed: int
    p_left: float = 0.5
    """Probability with which the first-sampled answer was put on the left."""
    revealed_at: float | None = None


class RatedResponse(msgspec.Struct, frozen=True, kw_only=True):
    """A thumb with everything that the reward model needs to learn from it."""

    event_id: str
    rater: str
    interaction_id: str
    policy_version: int
    prompt_token_ids: TokenIds
    token_ids: TokenIds
    value: RatingValue
    prompt_key: str
    """sha256 of how the conversation began: the unit by which data is split, so its turns never straddle."""
    reasons: tuple[str, ...] = ()
    """Keys that the rater ticked, of REASONS."""
    created_at: float = 0.0


class PreferencePair(msgspec.Struct, frozen=True, kw_only=True):
    """A choice between two answers to the same prompt: chosen over rejected, or a tie."""

    event_id: str
    rater: str
    comparison_id: str
    policy_version: int
    prompt_token_ids: TokenIds
    chosen_token_ids: TokenIds
    rejected_token_ids: TokenIds
    chosen_side: Side
    """Where the chosen answer was shown."""
    prompt_key: str
    tie: bool = False
    """Neither was better: then "chosen" is the answer on the left and "rejected" the one on the right."""
    margin: float = 0.0
    """How much better, at least, in units of the score: the likelihood asks the chosen one to lead by it."""
    reasons: tuple[str, ...] = ()
    """Keys that the rater ticked: what is good speaks for the chosen answer, what is bad against the rejected one."""
    created_at: float = 0.0


class Remark(msgspec.Struct, frozen=True, kw_only=True):
    """A report or a review of an answer: it speaks of axes (axes.py) and is no verdict on the whole."""

    event_id: str
    kind: RemarkKind
    rater: str
    interaction_id: str
    policy_version: int
    prompt_token_ids: TokenIds
    token_ids: TokenIds
    prompt_key: str
    reasons: tuple[str, ...]
    """Of REASONS or REMARKS."""
    created_at: float = 0.0


class PreferenceBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What one collection took from the log: entries (first_entry, last_entry], in stream order, each in one batch."""

    batch_id: str
    created_at: float
    first_entry: str
    last_entry: str
    events: int
    """Log entries covered, including withdrawals and skips."""
    ratings: tuple[RatedResponse, ...] = ()
    pairs: tuple[PreferencePair, ...] = ()
    remarks: tuple[Remark, ...] = ()
    current_event_ids: dict[str, str] = {}
    """Key `kind:target:rater` to the event that was current at collection ("" when withdrawn)."""


class GateCheck(msgspec.Struct, frozen=True, kw_only=True):
    """One question that the gate asks of a candidate, with the number it saw and the bound it had to meet."""

    name: str
    value: float
    bound: float
    passed: bool
    reason: str


class GateReport(msgspec.Struct, frozen=True, kw_only=True):
    """Every number of one gate decision. A candidate is accepted only if every check passed."""

    checkpoint_id: str
    parent_version: int
    created_at: float
    checks: tuple[GateCheck, ...]
    metrics: dict[str, float] = {}

    @property
    def accepted(self) -> bool:
        return all(check.passed for check in self.checks)

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(check.reason for check in self.checks if not check.passed)


class FileSeal(msgspec.Struct, frozen=True):
    """Size in bytes and sha256 of one file of a checkpoint."""

    size: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The seal of a checkpoint, written last: a directory without it does not exist."""

    checkpoint_id: str
    kind: CheckpointKind
    created_at: float
    files: dict[str, FileSeal]
    weights_sha256: str
    """sha256 over the names and hashes of the weight files: the identity of the weights."""
    template_sha256: str
    """sha256 of the chat template, which training never changes."""
    parent: str | None = None
    """Checkpoint that training started from."""
    base: str | None = None
    """For an adapter: the checkpoint whose weights it changes. None: these are full weights."""
    reference: str | None = None
    """Checkpoint that KL was measured against."""
    reward_checkpoint: str | None = None
    job_id: str | None = None
    fence: int = 0
    batch_ids: tuple[str, ...] = ()
    """The feedback that made it."""
    metrics: dict[str, float] = {}
    libraries: dict[str, str] = {}


class PolicyVersion(msgspec.Struct, frozen=True, kw_only=True):
    """One publication: `policy_version` counts publications, `checkpoint_id` names weights. Never edited."""

    policy_version: int
    checkpoint_id: str
    weights_sha256: str
    published_at: float
    actor: str
    """`server` (first start), `gate`, or `operator`."""
    reason: str
    parent_version: int | None = None
    job_id: str | None = None
    gate: GateReport | None = None
    metrics: dict[str, float] = {}


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One training of a reward model or a policy. The record is the truth; the Celery message only rings.

    `fence` grows with each attempt: a publication under an older fence is refused.
    """

    job_id: str
    kind: JobKind
    created_at: float
    batch_ids: tuple[str, ...]
    state: JobState = "queued"
    attempts: int = 0
    fence: int = 0
    stage: str = ""
    """What it is doing, for people: `reward model`, `rollouts 3/8`, `gate`."""
    progress: float = 0.0
    """0 to 1."""
    started_at: float | None = None
    finished_at: float | None = None
    last_feedback_at: float | None = None
    """Time of the newest feedback in its batches: the start of the thumb-to-answer clock."""
    checkpoint_id: str | None = None
    error: str | None = None
    metrics: dict[str, float] = {}
    gate: GateReport | None = None


class Approval(msgspec.Struct, frozen=True, kw_only=True):
    """Ratings of one policy version."""

    policy_version: int
    up: int
    down: int

    @property
    def n(self) -> int:
        return self.up + self.down
