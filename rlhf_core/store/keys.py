"""Names of everything that Attune keeps in Redis. Celery's queues live beside them, under `attune:q:`."""

from __future__ import annotations

PREFIX = "attune:"

INTERACTIONS = PREFIX + "interactions"
"""Sorted set: interaction id by created_at."""

FEEDBACK = PREFIX + "feedback"
"""Stream: the append-only log; each entry has one field, `event`, a Feedback in JSON."""
CURRENT = PREFIX + "feedback:current"
"""Hash: judgement key to the newest Feedback in JSON, a withdrawal included."""
UNREAD = PREFIX + "feedback:unread"
"""Hash: judgement key to the event id that waits for a batch."""
CURSOR = PREFIX + "feedback:cursor"
"""Stream id of the last entry that is in a batch."""
BATCHES = PREFIX + "feedback:batches"
"""List of batch ids, oldest first."""
SINCE_POLICY = PREFIX + "feedback:since_policy"
"""Count of judgements in batches that no policy training has used."""
APPROVAL = PREFIX + "approval"
"""Hash: `VERSION:up` and `VERSION:down` to a count."""

REPORTED = PREFIX + "reported"
"""Sorted set: interaction id of each answer with a standing report, by the time of the newest."""
WAITING = PREFIX + "reported:waiting"
"""Those that nobody has reviewed since."""

LIVE = PREFIX + "policy:live"
"""The live policy version, a decimal number. Only publication moves it."""
LEDGER = PREFIX + "policy:ledger"
"""Hash: policy version to PolicyVersion in JSON. Entries are never edited."""
STATES = PREFIX + "checkpoint:states"
"""Hash: checkpoint id to CheckpointState."""
REFERENCE = PREFIX + "policy:reference"
SERVED = PREFIX + "policy:served"
"""Hash: policy version to the time of its first token."""
REWARD = PREFIX + "reward"
"""RewardRecord in JSON: the reward models in use."""

JOBS = PREFIX + "jobs"
"""List of job ids, newest first."""
ACTIVE_JOB = PREFIX + "jobs:active"


def interaction(interaction_id: str) -> str:
    """String: an Interaction in JSON."""
    return f"{PREFIX}interaction:{interaction_id}"


def interaction_facts(interaction_id: str) -> str:
    """Hash of what the feedback scripts need to know: status, policy_version, stored; and how many reports
    and reviews of it stand."""
    return f"{PREFIX}interaction:{interaction_id}:facts"


def conversation(conversation_id: str) -> str:
    """Sorted set: interaction id by created_at."""
    return f"{PREFIX}conversation:{conversation_id}"


def comparison(comparison_id: str) -> str:
    """Hash: `record`, a Comparison in JSON, and `revealed_at`."""
    return f"{PREFIX}comparison:{comparison_id}"


def reports(interaction_id: str) -> str:
    """Sorted set: the key of each standing report of an answer, by the time it was made."""
    return f"{PREFIX}interaction:{interaction_id}:reports"


def event(event_id: str) -> str:
    """String with an expiry: what the script that wrote this event answered, in case it is sent again."""
    return f"{PREFIX}feedback:event:{event_id}"


def job(job_id: str) -> str:
    """Hash: each field of Job as its own JSON, so that a script can change one."""
    return f"{PREFIX}job:{job_id}"


def lease(job_id: str) -> str:
    """String with an expiry: the owner who trains this job now."""
    return f"{PREFIX}job:{job_id}:lease"


def once(task: str, bucket: str) -> str:
    """String with an expiry: this periodic task has run in this period."""
    return f"{PREFIX}due:{task}:{bucket}"


def judgement(kind: str, target: str, rater: str) -> str:
    """The identity of a judgement: at most one event under this key is current."""
    return f"{kind}:{target}:{rater}"
