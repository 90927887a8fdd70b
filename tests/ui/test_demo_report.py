from pathlib import Path

from rlhf_core.records import GateCheck
from ui.demo_report import save_plot, table
from ui.replies import Gate, Status, Training, Version, VersionApproval


def check(name: str, value: float, bound: float, passed: bool = True) -> GateCheck:
    return GateCheck(name=name, value=value, bound=bound, passed=passed, reason="")


STATUS = Status(
    versions=(
        Version(policy_version=1),
        Version(
            policy_version=2,
            served_at=130.0,
            last_feedback_at=100.0,
            gate=Gate(accepted=True, checks=(check("reward_accuracy", 0.9, 0.6), check("ref_kl", 1.25, 10.0))),
        ),
    ),
    approval=(
        VersionApproval(policy_version=1, up=45, down=55, n=100, value=0.45, lo=0.356, hi=0.548),
        VersionApproval(policy_version=2, up=80, down=20, n=100, value=0.8, lo=0.711, hi=0.867),
    ),
    rejected=(Training(gate=Gate(accepted=False, checks=(check("end_rate", 0.7, 0.95, passed=False),))),),
)


def test_each_version_and_each_refused_candidate_has_a_row() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(STATUS).splitlines()]
    assert rows[2] == ["1", "45.0% (35.6% to 54.8%)", "100", "-", "-", "-", "-", "-"]
    assert rows[3] == ["2", "80.0% (71.1% to 86.7%)", "100", "90.0%", "60.0%", "1.25", "accepted", "30"]
    assert rows[4] == ["refused", "-", "-", "-", "-", "-", "refused: end_rate", "-"]
    assert len({len(line) for line in table(STATUS).splitlines()}) == 1


def test_the_plot_is_a_picture(tmp_path: Path) -> None:
    save_plot(STATUS, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")
