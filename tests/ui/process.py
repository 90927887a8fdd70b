"""A real UI process on a free port."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.running import ROOT, free_port, stop

START_SECONDS = 180.0


@dataclass(frozen=True)
class RunningUi:
    url: str
    process: subprocess.Popen[bytes]
    log: Path


def ui_environment(**settings: object) -> dict[str, str]:
    """This process's environment without its ATTUNE_ variables, and those of the UI. `settings` by field name."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    return inherited | {f"ATTUNE_{name.upper()}": str(value) for name, value in settings.items()}


@contextlib.contextmanager
def running_ui(api_url: str, directory: Path) -> Iterator[RunningUi]:
    """`python -m ui` once it answers; stopped at the end."""
    port = free_port()
    log = directory / "ui.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "ui"],
            cwd=ROOT,
            env=ui_environment(api_url=api_url, ui_port=port),
            stdout=output,
            stderr=output,
        )
    running = RunningUi(f"http://127.0.0.1:{port}", process, log)
    try:
        _wait_until_it_answers(running)
        yield running
    finally:
        stop(process)


def _wait_until_it_answers(running: RunningUi) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and running.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(running.url, timeout=5.0).status_code == 200:
                return
        time.sleep(0.1)
    raise AssertionError(f"the UI did not answer:\n{running.log.read_text()[-4000:]}")
