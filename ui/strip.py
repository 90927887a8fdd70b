"""The strip above every tab: what is live, what is being learned, what is still needed. Pure functions to HTML."""

from __future__ import annotations

from html import escape

from ui.replies import FeedbackCounts, Live, Status, Training
from ui.text import meter_html, percent, time_html

KIND_NAMES = {"reward": "reward model", "policy": "policy"}


def strip_html(status: Status | None) -> str:
    """The whole strip; None when the API did not answer."""
    if status is None:
        body = '<span class="item offline"><i class="dot"></i>API not reachable, retrying</span>'
    else:
        body = live_html(status.live) + learning_html(status)
    return f'<div class="strip" role="status">{body}</div>'


def live_html(live: Live | None) -> str:
    if live is None:
        return '<span class="item waiting"><i class="dot"></i>No policy is live yet</span>'
    since = time_html(live.since if live.since is not None else live.published_at)
    name = f"<b>Policy {live.policy_version}</b>"
    return f'<span class="item live"><i class="dot"></i>{name} is live since {since}</span>'


def learning_html(status: Status) -> str:
    """A running training, and what the next ones wait for; beside a training without bars, to stay on one line."""
    if status.training is None:
        return needed_html(status.feedback, bars=True)
    return training_html(status.training) + needed_html(status.feedback, bars=False)


def training_html(job: Training) -> str:
    kind = KIND_NAMES.get(job.kind, job.kind)
    stage = f" – {job.stage}" if job.stage else ""
    what = f"Training of the {kind} is about to start" if job.state == "queued" else f"Training the {kind}{stage}"
    bar = meter_html(job.progress, f"progress of training the {kind}")
    return f'<span class="item training">{escape(what)} {bar} <span class="num">{percent(job.progress)}</span></span>'


def needed_html(feedback: FeedbackCounts, *, bars: bool) -> str:
    return _need_html("Reward update", feedback.unread, feedback.reward_min, feedback.until_reward, bars) + _need_html(
        "Policy training", feedback.since_policy, feedback.ppo_min, feedback.until_policy, bars
    )


def _need_html(what: str, have: int, wanted: int, missing: int, bars: bool) -> str:
    if wanted <= 0:
        return ""
    bar = meter_html(have / wanted, f"feedback for the next {what.lower()}") if bars else ""
    if missing <= 0:
        return f'<span class="item">{what}: enough ratings {bar}</span>'
    ratings = "rating" if missing == 1 else "ratings"
    return f'<span class="item">{what} in <b class="num">{missing}</b> {ratings} {bar}</span>'
