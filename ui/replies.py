"""What the API answers, as the UI reads it: typed, with a default for what an older API may lack.

Times are Unix seconds. Knows nothing of HTTP and nothing of Gradio.
"""

from __future__ import annotations

import msgspec

from rlhf_core.records import ChoiceValue, GateCheck, InteractionStatus, Message, RatingValue, ReportCategory, Side


class ChatEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of a streamed answer. The ids are known from the first event on."""

    interaction_id: str
    policy_version: int
    delta: str = ""
    finish: str | None = None
    """`stop` or `length`, in the last event only."""


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    interaction_id: str
    text: str
    policy_version: int
    finish_reason: str


class Counted(msgspec.Struct, frozen=True, kw_only=True):
    """Where a judgement counts."""

    training: bool = True
    stats: bool = True


class RatingReceipt(msgspec.Struct, frozen=True, kw_only=True):
    event_id: str
    state: RatingValue
    supersedes: str | None = None
    policy_version: int = 0
    counted: Counted = Counted()


class Rating(msgspec.Struct, frozen=True, kw_only=True):
    """My current rating of one answer; `state` None when there is none."""

    state: RatingValue | None = None
    reasons: tuple[str, ...] = ()
    comment: str = ""
    event_id: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What somebody reported of an answer."""

    category: ReportCategory
    note: str = ""


class StoredTurn(msgspec.Struct, frozen=True, kw_only=True):
    """One interaction of a stored conversation."""

    interaction_id: str
    messages: tuple[Message, ...] = ()
    response: str = ""
    status: InteractionStatus = "done"
    policy_version: int = 0
    created_at: float = 0.0
    rating: Rating | None = None
    report: Report | None = None


class StoredConversation(msgspec.Struct, frozen=True, kw_only=True):
    conversation_id: str
    interactions: tuple[StoredTurn, ...] = ()


class ComparisonEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One piece of one of the two answers; `done` in the last event only."""

    slot: Side | None = None
    delta: str = ""
    finish_reason: str | None = None
    done: bool = False


class RevealedSide(msgspec.Struct, frozen=True, kw_only=True):
    interaction_id: str
    policy_version: int


class Revealed(msgspec.Struct, frozen=True, kw_only=True):
    left: RevealedSide
    right: RevealedSide


class ChoiceReceipt(msgspec.Struct, frozen=True, kw_only=True):
    event_id: str
    choice: ChoiceValue
    revealed: Revealed
    counted: Counted = Counted()


class Live(msgspec.Struct, frozen=True, kw_only=True):
    policy_version: int
    checkpoint_id: str = ""
    published_at: float = 0.0
    since: float | None = None
    """When this version first answered; None until it has."""


class FeedbackCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many judgements are in, and how many are still needed."""

    unread: int = 0
    reward_min: int = 0
    until_reward: int = 0
    since_policy: int = 0
    ppo_min: int = 0
    until_policy: int = 0


class Gate(msgspec.Struct, frozen=True, kw_only=True):
    accepted: bool = False
    checks: tuple[GateCheck, ...] = ()
    metrics: dict[str, float] = {}


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """A training as the API tells it: running, or how it ended."""

    job_id: str = ""
    kind: str = ""
    state: str = ""
    stage: str = ""
    progress: float = 0.0
    started_at: float | None = None
    finished_at: float | None = None
    checkpoint_id: str | None = None
    error: str | None = None
    reasons: tuple[str, ...] = ()
    gate: Gate | None = None


class VersionApproval(msgspec.Struct, frozen=True, kw_only=True):
    """Ratings of one version; `lo` and `hi` bound the 95 % Wilson interval of `value`."""

    policy_version: int
    up: int = 0
    down: int = 0
    n: int = 0
    value: float | None = None
    lo: float | None = None
    hi: float | None = None


class Version(msgspec.Struct, frozen=True, kw_only=True):
    policy_version: int
    checkpoint_id: str = ""
    published_at: float = 0.0
    actor: str = ""
    reason: str = ""
    served_at: float | None = None
    """Time of its first token."""
    last_feedback_at: float | None = None
    """Time of the newest feedback that it learned from."""
    gate: Gate | None = None
    metrics: dict[str, float] = {}

    def measured(self, name: str) -> float | None:
        """A number of its training, or else of its gate."""
        measured_at_gate = self.gate.metrics if self.gate else {}
        return self.metrics.get(name, measured_at_gate.get(name))

    @property
    def seconds_to_first_token(self) -> float | None:
        """From the last needed feedback to the first token of the policy that learned from it."""
        if self.served_at is None or self.last_feedback_at is None:
            return None
        return max(0.0, self.served_at - self.last_feedback_at)


class Status(msgspec.Struct, frozen=True, kw_only=True):
    live: Live | None = None
    feedback: FeedbackCounts = FeedbackCounts()
    training: Training | None = None
    last_job: Training | None = None
    approval: tuple[VersionApproval, ...] = ()
    versions: tuple[Version, ...] = ()
    reward: dict[str, float | None] = {}
    rejected: tuple[Training, ...] = ()
