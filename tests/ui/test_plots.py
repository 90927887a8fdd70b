"""The figure shows a share only where there are enough ratings to mean something."""

from __future__ import annotations

import io

import pytest

from ui.plots import ENOUGH, approval_figure
from ui.replies import VersionApproval

MANY = VersionApproval(policy_version=2, up=80, down=40, n=120, value=2 / 3, lo=0.578, hi=0.745)
FEW = VersionApproval(policy_version=3, up=3, down=1, n=4, value=0.75, lo=0.3, hi=0.954)


def words(approval: list[VersionApproval]) -> list[str]:
    return [text.get_text() for text in approval_figure(approval).axes[0].texts]


def test_a_version_with_enough_ratings_has_its_share_and_its_interval() -> None:
    figure = approval_figure([MANY])
    bars = figure.axes[0].containers[0]
    ((low, high),) = [segment[:, 1] for segment in bars[2][0].get_segments()]
    assert (low, high) == (pytest.approx(0.578), pytest.approx(0.745))
    assert words([MANY]) == ["67 %  (n 120)"]


def test_a_version_with_few_ratings_is_collecting() -> None:
    assert FEW.n < ENOUGH
    assert words([FEW]) == ["collecting…\n4 of 10"]


def test_versions_stand_in_order_and_the_figure_can_be_drawn() -> None:
    figure = approval_figure([FEW, MANY])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["policy 2", "policy 3"]
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    assert drawn.getvalue().startswith(b"\x89PNG")
