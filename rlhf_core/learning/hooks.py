"""What a training loop tells the outside, and takes from an earlier run. Loops know no files and no terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rlhf_core.learning.training_state import TrainingState

Metrics = dict[str, float]


def _ignore_metrics(metrics: Mapping[str, float]) -> None:
    pass


def _ignore_progress(stage: str, share: float) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """The defaults listen to nothing, keep nothing and start from the beginning."""

    log: Callable[[Metrics], None] = _ignore_metrics
    """Told the metrics of every update, in order; `step` among them counts from 1."""
    progress: Callable[[str, float], None] = _ignore_progress
    """Told what is being done (`rollouts 3/8`) and the share of the whole that is behind, 0 to 1."""
    keep: Callable[[TrainingState], None] | None = None
    """Given the state after each `keep_every`-th update, to be resumed from."""
    keep_every: int = 1
    resume: TrainingState | None = None
    """Where an earlier run stopped: the loop goes on after its `step`, to the bits it would have had."""

    stop: Callable[[], bool] = _never
    """Whether somebody wants the loop to end early: the state after this update is then kept too, and `keep` raises
    KeyboardInterrupt. Asked once per update, in every process."""

    def keeps(self, step: int) -> bool:
        """Whether the state after `step` updates is wanted. To be called once per update, in every process."""
        stop = self.stop()
        return self.keep is not None and (stop or step % self.keep_every == 0)
