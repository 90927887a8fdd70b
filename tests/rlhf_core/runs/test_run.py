"""Run directories: whose they are, what stays after a stop, and when a run may go on."""

from __future__ import annotations

import argparse
import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from rlhf_core.errors import ConflictError, ModelError, TrainingError
from rlhf_core.learning.sft_settings import SftSettings
from rlhf_core.learning.training_state import capture
from rlhf_core.runs.record import load_record
from rlhf_core.runs.run import Run, open_run
from tests.rlhf_core.runs.files import demonstrations

SETTINGS = SftSettings()


@pytest.fixture
def options(tiny_model_dir: Path, tmp_path: Path) -> argparse.Namespace:
    return argparse.Namespace(
        model=str(tiny_model_dir),
        data=[demonstrations(tmp_path / "data.jsonl")],
        out=tmp_path / "run",
        seed=0,
        compute="float32",
        threads=0,
        skip_bad=False,
        resume=False,
        keep_every=2,
        force=False,
    )


def changed(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), **changes})


def count(run: Run, updates: int, interrupt_at: int = 0) -> int:
    """A loop that only counts. Returns the number it went on from."""
    module = torch.nn.Linear(1, 1)
    optimizer = torch.optim.AdamW(module.parameters())
    start = run.hooks.resume.step if run.hooks.resume else 0
    for step in range(start + 1, updates + 1):
        if step == interrupt_at:
            signal.raise_signal(signal.SIGINT)
        run.hooks.log({"step": float(step), "loss": 1.0 / step})
        if run.hooks.keeps(step) and run.hooks.keep is not None:
            run.hooks.keep(capture(step, {"module": module}, optimizer))
    return start


def stopped_run(options: argparse.Namespace) -> None:
    with pytest.raises(KeyboardInterrupt), open_run("sft", options, SETTINGS) as run:
        count(run, 5, interrupt_at=3)


def opened(command: str, options: argparse.Namespace, settings: SftSettings = SETTINGS) -> None:
    with open_run(command, options, settings):
        pass


def failing(options: argparse.Namespace, error: BaseException, updates: int = 0, *, finished: bool = False) -> None:
    with open_run("sft", options, SETTINGS) as run:
        count(run, updates)
        if finished:
            run.finish(write_hello)
        raise error


def lines(directory: Path) -> list[float]:
    return [json.loads(line)["step"] for line in (directory / "metrics.jsonl").read_text().splitlines()]


def write_hello(directory: Path) -> None:
    (directory / "hello.txt").write_text("hello")


def test_a_finished_run_has_its_result_its_metrics_and_its_record(options: argparse.Namespace) -> None:
    with open_run("sft", options, SETTINGS) as run:
        count(run, 3)
        assert not (options.out / "model").exists()
        run.finish(write_hello, {"loss": 0.5})
    record = load_record(options.out)
    assert (record.outcome, record.command, record.metrics) == ("done", "sft", {"loss": 0.5})
    assert record.settings["learning_rate"] == SETTINGS.learning_rate
    assert next(iter(record.data.values())) != record.model_sha256
    assert lines(options.out) == [1, 2, 3]
    assert [path.name for path in (options.out / "model").iterdir()] == ["hello.txt"]
    assert not (options.out / "state").exists()


def test_a_directory_that_holds_anything_is_refused(options: argparse.Namespace) -> None:
    options.out.mkdir()
    (options.out / "thesis.txt").write_text("mine")
    with pytest.raises(ConflictError, match="run is not empty"):
        opened("sft", options)
    assert [path.name for path in options.out.iterdir()] == ["thesis.txt"]


def test_ctrl_c_lets_the_update_end_keeps_its_state_and_says_how_to_go_on(
    options: argparse.Namespace, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGINT)
    stopped_run(options)
    assert lines(options.out) == [1, 2, 3]
    assert load_record(options.out).outcome == "stopped"
    assert "--resume goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is before
    with open_run("sft", changed(options, resume=True), SETTINGS) as run:
        assert count(run, 5) == 3
        run.finish(write_hello)
    assert lines(options.out) == [1, 2, 3, 4, 5]
    assert len(load_record(options.out).resumed_at) == 1


def test_updates_after_the_last_kept_state_are_not_told_twice(options: argparse.Namespace) -> None:
    stopped_run(options)
    with (options.out / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4.0}\n{"ste')  # an update whose state a kill took, and half a line
    with open_run("sft", changed(options, resume=True), SETTINGS) as run:
        count(run, 5)
        run.finish(write_hello)
    assert lines(options.out) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"compute": "bfloat16"}, r"option --compute was float32 and is now bfloat16"),
        ({"skip_bad": True}, r"option --skip-bad was False and is now True"),
    ],
)
def test_a_run_does_not_go_on_with_other_options(
    change: dict[str, Any], said: str, options: argparse.Namespace
) -> None:
    stopped_run(options)
    with pytest.raises(ConflictError, match=said):
        opened("sft", changed(options, resume=True, **change))


def test_a_run_does_not_go_on_with_other_settings_data_model_or_command(
    options: argparse.Namespace, make_tiny_model: Any, tmp_path: Path
) -> None:
    stopped_run(options)
    again = changed(options, resume=True)
    other = make_tiny_model(tmp_path / "other", seed=3)
    refused = [
        ("sft", again, SftSettings(epochs=2), "option --epochs was 1 and is now 2"),
        ("dpo", again, SETTINGS, "is a run of `attune sft`, not of `attune dpo`"),
        ("sft", changed(again, model=str(other)), SETTINGS, "model was"),
        ("sft", changed(again, data=[demonstrations(tmp_path / "more.jsonl", 30)]), SETTINGS, "content of data file 1"),
    ]
    for command, asked, settings, said in refused:
        with pytest.raises(ConflictError, match=said):
            opened(command, asked, settings)
    moved = options.data[0].rename(tmp_path / "moved.jsonl")
    with open_run("sft", changed(again, data=[moved]), SETTINGS) as run:
        run.finish(write_hello)


def test_a_finished_run_is_not_resumed_and_nothing_is_not_either(options: argparse.Namespace) -> None:
    with pytest.raises(ConflictError, match="holds no run to resume"):
        opened("sft", changed(options, resume=True))
    with open_run("sft", options, SETTINGS) as run:
        run.finish(write_hello)
    with pytest.raises(ConflictError, match="is finished"):
        opened("sft", changed(options, resume=True))


def test_a_run_that_is_refused_before_its_first_update_leaves_nothing(options: argparse.Namespace) -> None:
    with pytest.raises(TrainingError):
        failing(options, TrainingError("bad data"))
    assert not options.out.exists()


def test_a_run_that_fails_later_says_why_in_its_record(options: argparse.Namespace) -> None:
    with pytest.raises(TrainingError):
        failing(options, TrainingError("loss nan"), updates=2)
    assert load_record(options.out).outcome == "failed: loss nan"


def test_a_result_that_cannot_be_written_is_not_there(options: argparse.Namespace) -> None:
    def fail(directory: Path) -> None:
        write_hello(directory)
        raise ModelError("disk full")

    with pytest.raises(ModelError), open_run("sft", options, SETTINGS) as run:
        run.finish(fail)
    assert not (options.out / "model").exists()


def test_tensorboard_gets_every_update_where_it_is_installed(options: argparse.Namespace) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with open_run("sft", options, SETTINGS) as run:
        count(run, 3)
        run.finish(write_hello)
    events = EventAccumulator(str(options.out / "tensorboard"))
    events.Reload()
    assert [(event.step, round(event.value, 3)) for event in events.Scalars("loss")] == [(1, 1.0), (2, 0.5), (3, 0.333)]


def test_a_failure_that_nobody_foresaw_is_in_the_record_too(options: argparse.Namespace) -> None:
    with pytest.raises(ZeroDivisionError):
        failing(options, ZeroDivisionError("by nought"), updates=2)
    assert load_record(options.out).outcome == "failed: ZeroDivisionError: by nought"


@pytest.mark.parametrize("error", [TrainingError("too late"), KeyboardInterrupt()])
def test_what_happens_after_the_result_is_there_does_not_undo_it(
    options: argparse.Namespace, error: BaseException
) -> None:
    with pytest.raises(type(error)):
        failing(options, error, finished=True)
    assert load_record(options.out).outcome == "done"
    assert (options.out / "model" / "hello.txt").is_file()


def test_a_metric_that_is_not_finite_is_null_in_the_record(options: argparse.Namespace) -> None:
    with open_run("sft", options, SETTINGS) as run:
        run.hooks.log({"step": 1.0, "loss": float("nan")})
        run.finish(write_hello)
    assert load_record(options.out).metrics == {"step": 1.0, "loss": None}


def test_files_and_models_beside_are_compared_by_content(
    options: argparse.Namespace, make_tiny_model: Any, tmp_path: Path
) -> None:
    shown, judge = demonstrations(tmp_path / "shown.jsonl"), make_tiny_model(tmp_path / "judge", seed=3)
    beside = changed(options, demonstrations=[shown], judge=str(judge), served=None, reward="module:function")
    stopped_run(beside)
    again = changed(beside, resume=True)
    demonstrations(shown, 30)
    with pytest.raises(ConflictError, match="cannot be resumed: content of --demonstrations was"):
        opened("sft", again)
    demonstrations(shown)
    shutil.rmtree(judge)
    make_tiny_model(judge, seed=4)
    with pytest.raises(ConflictError, match="cannot be resumed: content of --judge was"):
        opened("sft", again)
