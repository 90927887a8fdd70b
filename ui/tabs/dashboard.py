"""The dashboard: does the policy get better, and what happened to each candidate. Drawn from /v1/status alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
import msgspec

from ui.plots import ENOUGH, approval_figure, is_enough
from ui.replies import Gate, Status, Training, Version, VersionApproval
from ui.strip import KIND_NAMES
from ui.text import date_html, duration, number, percent

COLUMNS = (
    "Version",
    "Published",
    "Approval",
    "Reward accuracy",
    "KL to start",
    "Gate",
    "Feedback to first token",
)


@dataclass(frozen=True)
class Panels:
    """The tab's outputs, in the order of `dashboard_panels`."""

    plot: gr.Plot
    empty: gr.HTML
    versions: gr.HTML
    outcomes: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        return [self.plot, self.empty, self.versions, self.outcomes]


def fingerprint(status: Status) -> bytes:
    """Changes exactly when the dashboard would look different."""
    return msgspec.json.encode((status.approval, status.versions, status.last_job, status.rejected, status.reward))


def dashboard_panels(status: Status) -> tuple[Any, Any, str, str]:
    rated = any(row.n for row in status.approval)
    figure = gr.update(value=approval_figure(status.approval), visible=True) if rated else gr.update(visible=False)
    hint = gr.update(
        value=empty_html("No ratings yet. Rate answers in the Chat tab, and each version gets its bar here.")
    )
    return figure, gr.update(visible=False) if rated else hint, versions_html(status), outcomes_html(status)


def empty_html(sentence: str) -> str:
    return f'<p class="empty">{escape(sentence)}</p>'


def versions_html(status: Status) -> str:
    if not status.versions:
        return empty_html("No policy has been published yet. The server publishes the first one when it starts.")
    approval = {row.policy_version: row for row in status.approval}
    live = status.live.policy_version if status.live else 0
    newest_first = sorted(status.versions, key=lambda version: -version.policy_version)
    rows = "".join(_row_html(version, approval.get(version.policy_version), live) for version in newest_first)
    heads = "".join(f'<th scope="col">{name}</th>' for name in COLUMNS)
    return f'<div class="scroll"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _row_html(version: Version, approval: VersionApproval | None, live: int) -> str:
    badge = ' <span class="badge good">live</span>' if version.policy_version == live else ""
    cells = (
        f"<b>{version.policy_version}</b>{badge}",
        f'{date_html(version.published_at)}<span class="sub">{escape(version.reason)}</span>',
        approval_html(approval),
        percent(version.measured("reward_accuracy")),
        number(version.measured("ref_kl")),
        gate_html(version.gate),
        duration(version.seconds_to_first_token),
    )
    named = zip(COLUMNS, cells, strict=True)
    return "<tr>" + "".join(f'<td data-label="{name}"><span>{cell}</span></td>' for name, cell in named) + "</tr>"


def approval_html(row: VersionApproval | None) -> str:
    if row is None or not is_enough(row):
        return f'<span class="faint">collecting… {row.n if row else 0} of {ENOUGH}</span>'
    return f'{percent(row.value)}<span class="sub">{percent(row.lo)} to {percent(row.hi)}, n {row.n}</span>'


def gate_html(gate: Gate | None) -> str:
    """The decision; every check with its number and bound unfolds."""
    if gate is None:
        return '<span class="faint">no gate</span>'
    word, kind = ("accepted", "good") if gate.accepted else ("rejected", "bad")
    checks = "".join(
        f'<li class="{"good" if check.passed else "bad"}">{escape(check.name)}: {check.value:.3g} '
        f"(bound {check.bound:.3g}) – {escape(check.reason)}</li>"
        for check in gate.checks
    )
    badge = f'<span class="badge {kind}">{word}</span>'
    return f'<details><summary>{badge}</summary><ul class="checks">{checks}</ul></details>'


def outcomes_html(status: Status) -> str:
    jobs = _distinct([status.last_job] if status.last_job else [], status.rejected)
    if not jobs:
        return empty_html("No training has run yet. The strip above says how much feedback starts the next one.")
    return f'<ul class="outcomes">{"".join(outcome_html(job) for job in jobs)}</ul>'


def _distinct(*groups: Sequence[Training]) -> list[Training]:
    """Each training once: the last one may be among the rejected, too."""
    by_id = {job.job_id or job.checkpoint_id: job for group in groups for job in group}
    return list(by_id.values())


def outcome_html(job: Training) -> str:
    kind = escape(KIND_NAMES.get(job.kind, job.kind) or "policy")
    state = job.state or "rejected"
    tone = "good" if state == "done" else "bad" if state in ("rejected", "failed", "dead") else ""
    at = f" {date_html(job.finished_at)}" if job.finished_at else ""
    took = f", {duration(job.finished_at - job.started_at)}" if job.finished_at and job.started_at else ""
    why = "".join(f"<li>{escape(reason)}</li>" for reason in outcome_reasons(job))
    reasons = f"<ul>{why}</ul>" if why else ""
    return f'<li><span class="badge {tone}">{escape(state)}</span> {kind} training{at}{took}{reasons}</li>'


def outcome_reasons(job: Training) -> tuple[str, ...]:
    if job.error:
        return (job.error,)
    if job.gate is not None:
        return tuple(check.reason for check in job.gate.checks if not check.passed)
    return job.reasons


def dashboard_tab(times_script: str) -> Panels:
    """Lay the tab out; the app's timer fills it."""
    gr.HTML(
        "<h2>Approval by version</h2><p>Share of good ratings, with 95 % Wilson intervals.</p>",
        elem_classes="head",
    )
    plot = gr.Plot(show_label=False, elem_id="approval", visible=False)
    empty = gr.HTML(empty_html("Waiting for the API."), elem_id="approval-empty", apply_default_css=False)
    gr.HTML("<h2>Versions</h2>", elem_classes="head")
    versions = gr.HTML(elem_id="versions", apply_default_css=False, js_on_load=times_script)
    gr.HTML("<h2>Recent trainings</h2>", elem_classes="head")
    outcomes = gr.HTML(elem_id="outcomes", apply_default_css=False, js_on_load=times_script)
    return Panels(plot, empty, versions, outcomes)
