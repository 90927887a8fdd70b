"""What the demo prints and saves: one row per policy version and per refused candidate, and a plot of approval."""

from __future__ import annotations

from pathlib import Path

from ui.plots import approval_figure
from ui.replies import Gate, Status, Training, Version, VersionApproval

HEADER = ("policy", "approval (95 %)", "ratings", "reward acc.", "length acc.", "KL", "gate", "seconds")
NOTHING = "-"


def table(status: Status) -> str:
    """The run as a Markdown table. Seconds: from the last needed feedback to the first token of the new version."""
    approval = {row.policy_version: row for row in status.approval}
    rows = [_version_row(version, approval.get(version.policy_version)) for version in status.versions]
    rows += [_refused_row(job) for job in status.rejected]
    widths = [max(len(row[column]) for row in [HEADER, *rows]) for column in range(len(HEADER))]
    lines = [_line(HEADER, widths), "|" + "|".join("-" * (width + 2) for width in widths) + "|"]
    return "\n".join(lines + [_line(row, widths) for row in rows])


def save_plot(status: Status, path: Path) -> None:
    figure = approval_figure(status.approval)
    figure.patch.set_alpha(1.0)
    figure.savefig(path, dpi=120, facecolor="white")


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"


def _version_row(version: Version, approval: VersionApproval | None) -> tuple[str, ...]:
    seconds = version.seconds_to_first_token
    return (
        str(version.policy_version),
        _approval(approval),
        str(approval.n) if approval else "0",
        *_gate_numbers(version.gate),
        f"{seconds:.0f}" if seconds is not None else NOTHING,
    )


def _refused_row(job: Training) -> tuple[str, ...]:
    return ("refused", NOTHING, NOTHING, *_gate_numbers(job.gate), NOTHING)


def _approval(row: VersionApproval | None) -> str:
    if row is None or row.value is None or row.lo is None or row.hi is None:
        return NOTHING
    return f"{row.value:.1%} ({row.lo:.1%} to {row.hi:.1%})"


def _gate_numbers(gate: Gate | None) -> tuple[str, str, str, str]:
    """Reward accuracy, the length-only rule's accuracy, KL in nats per response, and the verdict with its reasons."""
    if gate is None:
        return NOTHING, NOTHING, NOTHING, NOTHING
    checks = {check.name: check for check in gate.checks}
    accuracy, ref_kl = checks.get("reward_accuracy"), checks.get("ref_kl")
    failed = ", ".join(check.name for check in gate.checks if not check.passed)
    return (
        f"{accuracy.value:.1%}" if accuracy else NOTHING,
        f"{accuracy.bound:.1%}" if accuracy else NOTHING,
        f"{ref_kl.value:.2f}" if ref_kl else NOTHING,
        "accepted" if gate.accepted else f"refused: {failed}",
    )
