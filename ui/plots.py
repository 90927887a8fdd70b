"""The dashboard's figure: approval by policy version. Drawn with colours that read on a light and on a dark page."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ui.replies import VersionApproval

ENOUGH = 10
"""Below this many ratings a share says more about chance than about the policy: shown as collecting."""
INK = "#7d8798"
ACCENT = "#12a594"
FAINT = "#9aa3b2"


def approval_figure(approval: Sequence[VersionApproval]) -> Figure:
    """Share of good ratings per version, with its 95 % Wilson interval as a bar."""
    figure = Figure(figsize=(6.4, 2.7), dpi=200, layout="constrained")
    figure.patch.set_alpha(0.0)
    axes = figure.add_subplot()
    _frame(axes)
    shown = sorted(approval, key=lambda row: row.policy_version)
    for place, row in enumerate(shown):
        if is_enough(row):
            _interval(axes, place, row)
        else:
            axes.annotate(f"collecting…\n{row.n} of {ENOUGH}", (place, 0.5), ha="center", va="center", color=FAINT)
    axes.set_xticks(range(len(shown)), [f"policy {row.policy_version}" for row in shown])
    axes.set_xlim(-0.6, max(len(shown), 1) - 0.4)
    return figure


def is_enough(row: VersionApproval) -> bool:
    return row.n >= ENOUGH and row.value is not None and row.lo is not None and row.hi is not None


def _interval(axes: Axes, place: int, row: VersionApproval) -> None:
    value, low, high = row.value or 0.0, row.lo or 0.0, row.hi or 0.0
    axes.errorbar(
        place, value, yerr=[[value - low], [high - value]], fmt="o", markersize=9, color=ACCENT, ecolor=ACCENT,
        elinewidth=2.2, capsize=6, capthick=2.2,
    )  # fmt: skip
    axes.annotate(
        f"{100 * value:.0f} %  (n {row.n})", (place, value), xytext=(12, 0), textcoords="offset points", va="center",
        color=INK, fontsize=9,
    )  # fmt: skip


def _frame(axes: Axes) -> None:
    axes.patch.set_alpha(0.0)
    axes.set_ylim(0.0, 1.0)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    axes.tick_params(colors=INK, labelsize=9, length=0)
    axes.grid(axis="y", color=INK, alpha=0.25, linewidth=0.8)
    for name in ("top", "right", "left"):
        axes.spines[name].set_visible(False)
    axes.spines["bottom"].set_color(INK)
