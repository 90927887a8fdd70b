"""`attune up`: the whole loop on one machine, under supervisord.

Holds the lock on the data directory, hands the five processes of `supervisord.conf` their environment, prints the two
addresses when they answer, and ends everything within 15 s of Ctrl-C. Knows the processes only by name: what they do
is their own business.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supervisor.xmlrpc import SupervisorTransport

from rlhf_core.errors import AttuneError, SettingsError
from rlhf_core.settings import Settings
from rlhf_core.store.embedded import write_address

CONFIG = Path(__file__).resolve().parent.parent / "supervisord.conf"
START_SECONDS = 180.0
DOWNLOAD_SECONDS = 3600.0
"""Instead, while the first policy may have to be fetched from a hub."""
STOP_SECONDS = 14.0


class UpError(AttuneError):
    """The processes could not be brought up; the sentence says which and where its log is."""


@contextlib.contextmanager
def data_lock(data_path: Path) -> Iterator[None]:
    """Hold the data directory. Raises SettingsError when another process does: two servers would corrupt one log."""
    data_path.mkdir(parents=True, exist_ok=True)
    with (data_path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"another Attune already runs on {data_path}; end it, or set ATTUNE_DATA_DIR to another directory"
            ) from None
        yield


def up(settings: Settings) -> int:
    """Run until Ctrl-C or SIGTERM. Returns the exit status."""
    with data_lock(settings.data_path), tempfile.TemporaryDirectory(prefix="attune-") as run:
        _refuse_taken_ports(settings)
        stop = _stop_on_signals()
        process = subprocess.Popen(
            [sys.executable, "-m", "supervisor.supervisord", "-c", str(CONFIG)],
            cwd=CONFIG.parent,
            env=_environment(settings, Path(run)),
            start_new_session=True,
        )
        try:
            _announce(settings, process, Path(run), stop)
            while not stop and process.poll() is None:
                time.sleep(0.2)
            return 0 if stop else 1
        finally:
            _end(process)


def _environment(settings: Settings, run: Path) -> dict[str, str]:
    logs = settings.data_path / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ)
    environment.update(
        UP_RUN=str(run),
        UP_DATA=str(settings.data_path),
        UP_LOGS=str(logs),
        UP_PYTHON=sys.executable,
        UP_EMBEDDED="false" if settings.redis_url else "true",
        ATTUNE_DATA_DIR=str(settings.data_path),
        PYTHONUNBUFFERED="1",
    )
    if not settings.redis_url:
        # Written before any process starts: each of them reads the address, whichever is first.
        write_address(settings.data_path, settings.redis_port)
    return environment


def _refuse_taken_ports(settings: Settings) -> None:
    wanted = [
        ("ATTUNE_API_PORT", settings.host, settings.api_port),
        ("ATTUNE_UI_PORT", settings.host, settings.ui_port),
    ]
    if not settings.redis_url:
        wanted.append(("ATTUNE_REDIS_PORT", "127.0.0.1", settings.redis_port))
    for name, host, port in wanted:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise SettingsError(f"port {port} of {host} cannot be used ({error.strerror}); set {name}") from None


def _stop_on_signals() -> list[int]:
    """A list that is empty until a signal asks to stop."""
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, _frame: received.append(signum))
    return received


def _announce(settings: Settings, process: subprocess.Popen[bytes], run: Path, stop: list[int]) -> None:
    """Wait until both addresses answer, and print them. Raises UpError when a process ended for good."""
    logs = settings.data_path / "logs"
    print(f"Starting Attune on {settings.data_path} (logs in {logs})", flush=True)
    addresses = {"API": f"{settings.local_url(settings.api_port)}", "UI": settings.local_url(settings.ui_port)}
    waiting = {"API": f"{addresses['API']}/health/ready", "UI": f"{addresses['UI']}/"}
    patience = START_SECONDS if settings.model == "desk" else DOWNLOAD_SECONDS
    deadline = time.monotonic() + patience
    while waiting and not stop:
        if process.poll() is not None:
            raise UpError(f"supervisord ended with status {process.returncode}; its log is in {logs}")
        _raise_if_gone(settings, run)
        if time.monotonic() > deadline:
            raise UpError(f"no answer from the {' and the '.join(waiting)} within {patience:.0f} s; see {logs}")
        waiting = {name: url for name, url in waiting.items() if not _answers(url)}
        time.sleep(0.3)
    if not stop:
        print(f"  chat       {addresses['UI']}\n  API        {addresses['API']}", flush=True)
        print("  try        make demo\n  Ctrl-C ends everything.", flush=True)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _raise_if_gone(settings: Settings, run: Path) -> None:
    """Raise UpError when a process ended for good, with the last line of its log."""
    for info in _process_states(run):
        gone = info["statename"] == "FATAL" or (info["statename"] == "EXITED" and info["exitstatus"] == 2)
        if gone:
            log = settings.data_path / "logs" / f"{info['name']}.log"
            lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
            raise UpError(f"{info['name']} could not start: {lines[-1] if lines else f'see {log}'}")


def _process_states(run: Path) -> list[dict[str, Any]]:
    path = run / "supervisor.sock"
    if not path.exists():
        return []
    proxy = xmlrpc.client.ServerProxy("http://localhost", transport=SupervisorTransport(None, None, f"unix://{path}"))
    try:
        states: Any = proxy.supervisor.getAllProcessInfo()
    except (OSError, xmlrpc.client.Error):
        return []
    return list(states)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM to supervisord, which ends the others in order; after STOP_SECONDS, SIGKILL."""
    if process.poll() is None:
        print("Stopping.", flush=True)
        process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
