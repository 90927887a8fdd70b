"""Servers as child processes: Attune with a store of its own, and others where they are installed.

All are asked for the same: the same model directory and dtype, as many tokens of context, answers that run to
`max_tokens`. One runs at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rlhf_core.checkpoints import new_checkpoint_id, seal
from rlhf_core.errors import AttuneError
from rlhf_core.records import Manifest
from rlhf_core.store.connection import connect
from rlhf_core.store.embedded import start_embedded
from rlhf_core.store.policies import PolicyStore
from server.bench.client import Fields
from server.bench.models import BenchModel, without_end

START_SECONDS = 300.0
"""A server that compiles its kernels takes minutes the first time."""
STOP_SECONDS = 30.0
CONTEXT = 1024
MAX_RUNNING = 32

STREAMED: Final[Fields] = {"stream": True, "temperature": 1.0}


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    url: str
    """http://127.0.0.1:PORT, without a slash."""
    process: subprocess.Popen[bytes]
    log: Path
    fields: Fields
    """What each request to it must say, `messages` and `max_tokens` apart."""
    dtype: str


@dataclass(frozen=True)
class Attune:
    """An Attune server with its store and its checkpoints."""

    running: Running
    data: Path
    policies: PolicyStore

    @property
    def policy_version(self) -> int:
        """The version in service."""
        return int(json.loads(fetch(f"{self.running.url}/health/ready"))["policy_version"])

    def seal(self, write: Callable[[Path], None], base: str | None = None) -> Manifest:
        """A checkpoint made by `write`, ready to be published; `base` is what an adapter changes."""
        fields = {
            "checkpoint_id": new_checkpoint_id("policy"),
            "kind": "policy",
            "created_at": time.time(),
            "base": base,
        }
        return seal(self.data / "checkpoints", write, fields)

    def publish(self, checkpoint: Manifest) -> int:
        """Make it live; the server follows by itself. Returns its version."""
        published = self.policies.publish(
            checkpoint_id=checkpoint.checkpoint_id,
            weights_sha256=checkpoint.weights_sha256,
            actor="operator",
            reason="bench",
            now=time.time(),
            expected_version=self.policies.live_version(),
        )
        return published.policy_version


@contextlib.contextmanager
def attune(model: Path, place: Path, *, dtype: str = "", **settings: object) -> Iterator[Attune]:
    """Attune on `model`, ready, with everything it writes under `place`. `settings` by field name.

    ATTUNE_* variables of this process are handed on, but for those that say where things are.
    """
    data = place / "data"
    with start_embedded(place / "store", free_port()) as store:
        here = {"data_dir": data, "redis_url": store.url, "model": model, "host": "127.0.0.1", "api_keys": ""}
        named = {"max_running": MAX_RUNNING, "max_context": CONTEXT, **here, **settings}
        environment = os.environ | {f"ATTUNE_{name.upper()}": str(value) for name, value in named.items()}

        def command(port: int) -> list[str]:
            environment["ATTUNE_API_PORT"] = str(port)
            return [sys.executable, "-m", "server"]

        fields = {**STREAMED, "ignore_eos": True, "stream_options": {"include_usage": True}}
        with started("attune", command, environment, "/health/ready", place / "attune.log") as (url, process):
            running = Running("attune", url, process, place / "attune.log", fields, dtype)
            yield Attune(running, data, PolicyStore(connect(store.url)))


@dataclass(frozen=True)
class Rival:
    """Another server: how it is found and started, and what its requests must say."""

    name: str
    executable: str
    variable: str
    """Environment variable that may hold the path of the executable."""
    arguments: Callable[[BenchModel, Path], Sequence[str]]
    """After `serve`; of the model, and of the copy of its directory whose answers do not end."""
    fields: Fields
    environment: Callable[[Path], dict[str, str]] = lambda _: {}
    """Variables that it wants, of the path of its executable."""

    def found(self) -> Path | None:
        """The executable: the variable's, else the one on PATH, else the one beside this Python."""
        named = os.environ.get(self.variable) or shutil.which(self.executable)
        path = Path(named) if named else Path(sys.executable).parent / self.executable
        return path.absolute() if path.is_file() else None

    @contextlib.contextmanager
    def serving(self, executable: Path, model: BenchModel, place: Path) -> Iterator[Running]:
        """Raises AttuneError with the last line of its log when it does not start."""
        place.mkdir(parents=True, exist_ok=True)
        endless = without_end(model, place / "model")
        paths = {"PATH": f"{executable.parent}{os.pathsep}{os.environ.get('PATH', '')}", "HF_HUB_OFFLINE": "1"}
        environment = os.environ | paths | self.environment(executable)

        def command(port: int) -> list[str]:
            where = ["--host", "127.0.0.1", "--port", str(port), "--dtype", model.dtype]
            return [str(executable), "serve", *self.arguments(model, endless), *where]

        with started(self.name, command, environment, "/health", place / "log") as (url, process):
            yield Running(self.name, url, process, place / "log", self.fields, model.dtype)


def _vllm_environment(executable: Path) -> dict[str, str]:
    """Its documentation asks that Intel's OpenMP be loaded first where it is there; 2 GiB hold all our caches."""
    openmp = executable.parent.parent / "lib" / "libiomp5.so"
    preload = ":".join(filter(None, [os.environ.get("LD_PRELOAD"), str(openmp) if openmp.is_file() else None]))
    space = os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2")
    return {"VLLM_CPU_KVCACHE_SPACE": space, "VLLM_NO_USAGE_STATS": "1"} | ({"LD_PRELOAD": preload} if preload else {})


RIVALS: Final = (
    Rival(
        name="vLLM",
        executable="vllm",
        variable="VLLM",
        arguments=lambda model, _: [
            *(str(model.directory), "--max-model-len", str(min(CONTEXT, model.max_context))),
            *("--max-num-seqs", str(MAX_RUNNING)),
        ],
        fields={**STREAMED, "ignore_eos": True, "stream_options": {"include_usage": True}},
        environment=_vllm_environment,
    ),
    Rival(
        name="transformers serve",
        executable="transformers",
        variable="TRANSFORMERS_CLI",
        # Its cache would take nine tenths of the memory of this machine: here it holds what ours does, in pages of 256.
        arguments=lambda _, endless: [
            *(str(endless), "--device", "cpu", "--continuous-batching"),
            *("--cb-num-blocks", str(MAX_RUNNING * CONTEXT // 256)),
        ],
        # It has no `ignore_eos`, and counts its tokens unasked.
        fields=STREAMED,
    ),
)


@contextlib.contextmanager
def started(
    name: str, command: Callable[[int], Sequence[str]], environment: Mapping[str, str], ready: str, log: Path
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A process that answers GET `ready`; ended with its children at the end. Raises AttuneError when it never does."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command(port), env=dict(environment), stdout=output, stderr=output, start_new_session=True
        )
    try:
        until = time.monotonic() + START_SECONDS
        while not _answers(f"{url}{ready}"):
            if process.poll() is not None or time.monotonic() > until:
                state = "did not start in time" if process.poll() is None else f"ended with status {process.returncode}"
                raise AttuneError(f"{name} {state}: {last_line(log)}")
            time.sleep(0.1)
        yield url, process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask, then insist; the session it was started in goes with it, since some servers leave children behind."""
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, 9)


def _answers(url: str) -> bool:
    try:
        fetch(url)
    except OSError:
        return False
    return True


def fetch(url: str) -> bytes:
    """The body of a GET. Raises OSError for a status that is not one of success."""
    with urllib.request.urlopen(url, timeout=10) as response:
        body: bytes = response.read()
        return body


def last_line(log: Path) -> str:
    """What a process said last: of a Python that failed, the exception."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return (lines or ["it said nothing"])[-1][:300]


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
