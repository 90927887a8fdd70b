"""A run: one training in a directory of its own, that can be stopped at any moment and resumed.

    run.json         what was asked of which model and data, with which libraries, and how it came out
    metrics.jsonl    the metrics of every update
    tensorboard/     the same as event files, where TensorBoard is installed
    state/           where to go on, while the run is not finished
    model/           the result; it appears whole, at the end

Knows nothing of any algorithm: a loop is given `run.hooks` and `run.devices`, and `run.finish` what writes its result.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

import msgspec
import torch

from rlhf_core.errors import AttuneError
from rlhf_core.learning.devices import Devices
from rlhf_core.learning.hooks import Hooks
from rlhf_core.learning.training_state import TrainingState, has_state, load_state, save_state
from rlhf_core.models.allocation import keep_freed_memory
from rlhf_core.models.load import locate_model
from rlhf_core.runs.journal import Journal
from rlhf_core.runs.memory import require_memory
from rlhf_core.runs.precision import choose_compute
from rlhf_core.runs.record import RunRecord, describe_run, refuse_taken, resumed, save_record
from rlhf_core.runs.run_files import write_aside
from rlhf_core.runs.tally import Tally

STATE: Final = "state"
MODEL: Final = "model"


class Run:
    """An open run. Made by `open_run`."""

    def __init__(self, directory: Path, record: RunRecord, devices: Devices, options: argparse.Namespace) -> None:
        self.directory = directory
        self.record = record
        self.devices = devices
        self.tally = Tally(skip_bad=options.skip_bad)
        state = load_state(directory / STATE) if options.resume and has_state(directory / STATE) else None
        self.journal = Journal(directory, is_main=devices.is_main, after_step=state.step if state else 0)
        self._stop_asked = False
        self.hooks = Hooks(
            log=self.journal.log,
            progress=self.journal.progress,
            keep=self._keep,
            keep_every=options.keep_every,
            resume=state,
            stop=self._stop,
        )
        if options.resume:
            self.say(f"going on after update {state.step}" if state else "nothing was kept: starting again")

    def say(self, text: str) -> None:
        """A sentence for people, from the main process alone."""
        self.journal.say(text)

    def finish(self, write: Callable[[Path], None], metrics: Mapping[str, float] | None = None) -> Path:
        """Let `write` fill the result's directory, make it visible whole, and record the outcome."""
        result = self.directory / MODEL
        if self.devices.is_main:
            write_aside(result, write)
        self.record.metrics = dict(metrics or self.journal.last)
        self.end("done")
        if self.devices.is_main:
            # Last, so that a kill before it leaves a run that can still be resumed.
            shutil.rmtree(self.directory / STATE, ignore_errors=True)
        self.devices.wait()
        for line in self.tally.lines():
            self.say(line)
        self.say(f"the result is {result}")
        return result

    def end(self, outcome: str) -> None:
        """Record how it came out. Nothing that happens after its result is there changes that."""
        if self.record.outcome == "done":
            return
        self.record.outcome = outcome
        self.record.finished_at = time.time()
        self.record.counts = self.tally.as_counts()
        if self.devices.is_main:
            save_record(self.directory, self.record)

    def fail(self, error: Exception) -> None:
        """Record why it ended; a run that never made an update leaves nothing, so that its directory can be used."""
        if self.journal.last or self.record.resumed_at or self.record.outcome == "done":
            why = str(error) if isinstance(error, AttuneError) else f"{type(error).__name__}: {error}"
            self.end(f"failed: {why}")
        elif self.devices.is_main:
            self.journal.close()
            shutil.rmtree(self.directory)

    def interrupt(self, _signal: int, _frame: FrameType | None) -> None:
        """The first signal lets the update end, a second one does not."""
        if self._stop_asked:
            raise KeyboardInterrupt
        self._stop_asked = True
        self.say("stopping after this update; Ctrl-C again stops at once")

    def _keep(self, state: TrainingState) -> None:
        if self.devices.is_main:
            save_state(state, self.directory / STATE)
        self.devices.wait()
        if self._stop():
            raise KeyboardInterrupt

    def _stop(self) -> bool:
        """Whether somebody asked any of the processes to stop; all of them answer alike."""
        return self.devices.sum_numbers({"stop": float(self._stop_asked)})["stop"] > 0


@contextmanager
def open_run(command: str, options: argparse.Namespace, settings: msgspec.Struct) -> Iterator[Run]:
    """Open the run directory of `--out` for a new run, or with `--resume` for one that was stopped.

    Raises MemoryNeededError when it cannot fit, ConflictError when the directory is taken or a resumed run was of
    other settings, data or model, SettingsError when the precision is not to be had.
    """
    if options.threads:
        torch.set_num_threads(options.threads)
    devices = Devices(choose_compute(options.compute))
    model = locate_model(options.model)
    require_memory(command, options, settings, model=model, processes=devices.count)
    asked = describe_run(
        command, options, settings, model=model, processes=devices.count, threads=torch.get_num_threads()
    )
    keep_freed_memory()
    directory: Path = options.out
    record = _claim(directory, asked, devices, resume=options.resume)
    run = Run(directory, record, devices, options)
    before = {each: signal.signal(each, run.interrupt) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield run
    except KeyboardInterrupt:
        run.end("stopped")
        run.say(f"stopped; the same command with --resume goes on with {directory}")
        raise
    except Exception as error:
        run.fail(error)
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        run.journal.close()


def _claim(directory: Path, asked: RunRecord, devices: Devices, *, resume: bool) -> RunRecord:
    """Make the directory this run's. Every process looks before the first one writes."""
    if not resume:
        refuse_taken(directory)
    record = resumed(directory, asked) if resume else asked
    devices.wait()
    if devices.is_main:
        directory.mkdir(parents=True, exist_ok=True)
        save_record(directory, record)
    devices.wait()
    return record
