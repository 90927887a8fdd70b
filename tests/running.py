"""A real server process on a free port, for tests of every package."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx

ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 120.0


@dataclass(frozen=True)
class RunningServer:
    url: str
    """http://127.0.0.1:PORT, without a slash."""
    process: subprocess.Popen[bytes]
    log: Path
    data_dir: Path


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_environment(data_dir: Path, redis_url: str, model: str | Path, **settings: object) -> dict[str, str]:
    """This process's environment without its ATTUNE_ variables, and those of the server. `settings` by field name."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    named = {"data_dir": data_dir, "redis_url": redis_url, "model": model, "serve_threads": 1, **settings}
    return inherited | {f"ATTUNE_{name.upper()}": str(value) for name, value in named.items()}


def start_server(environment: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    """`python -m server`, not waited for."""
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "server"], cwd=ROOT, env=environment, stdout=output, stderr=output
        )


def stop(process: subprocess.Popen[bytes], seconds: float = 15.0) -> int:
    """End a process that a test started. Returns its status."""
    process.terminate()
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


@contextlib.contextmanager
def running_server(data_dir: Path, redis_url: str, model: str | Path, **settings: object) -> Iterator[RunningServer]:
    """A server that is ready; stopped at the end. `settings` by field name: `running_server(..., max_running=2)`."""
    port = free_port()
    data_dir.mkdir(parents=True, exist_ok=True)
    log = data_dir / "server.log"
    environment = server_environment(data_dir, redis_url, model, api_port=port, **settings)
    process = start_server(environment, log)
    server = RunningServer(f"http://127.0.0.1:{port}", process, log, data_dir)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        stop(process)


def _wait_until_ready(server: RunningServer) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.process.poll() is None:
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{server.url}/health/ready", timeout=2.0).status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"the server did not become ready:\n{server.log.read_text()[-4000:]}")
