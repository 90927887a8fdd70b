from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rlhf_core.errors import StoreUnavailableError
from rlhf_core.store.connection import connect, wait_until_ready
from rlhf_core.store.embedded import EmbeddedServer, start_embedded
from tests.running import free_port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with start_embedded(tmp_path, free_port()) as running:
        yield running


def second_server(directory: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "ATTUNE_DATA_DIR": str(directory), "ATTUNE_REDIS_PORT": str(free_port())}
    command = [sys.executable, "-m", "rlhf_core.store.embedded"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=20, check=False)


def test_a_killed_server_comes_back_with_every_write_and_the_same_address(server: EmbeddedServer) -> None:
    address = server.url
    client = connect(address)
    client.set("kept", "yes")
    server.process.kill()
    server.process.wait()
    with pytest.raises(StoreUnavailableError):
        client.get("kept")
    server.restart()
    assert (server.directory / "redis" / "url").read_text().strip() == address
    assert client.get("kept") == b"yes"
    client.close()


def test_the_server_acknowledges_only_what_is_on_disk_and_asks_for_a_password(server: EmbeddedServer) -> None:
    client = connect(server.url)
    assert client.config_get("appendfsync") == {"appendfsync": "always"}
    assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
    client.close()
    stranger = connect("redis://" + server.url.partition("@")[2])
    with pytest.raises(StoreUnavailableError, match="authenticate"):
        stranger.get("kept")
    stranger.close()
    for name in ("url", "server.conf"):
        assert stat.S_IMODE((server.directory / "redis" / name).stat().st_mode) == 0o600


def test_a_second_server_on_the_same_data_is_refused_in_one_sentence(server: EmbeddedServer) -> None:
    refused = second_server(server.directory)
    assert refused.returncode == 1
    assert "another server already runs on" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1


def test_a_torn_tail_is_cut_and_damage_before_it_is_named(server: EmbeddedServer) -> None:
    client = connect(server.url)
    client.set("first", "1" * 100)
    client.set("second", "2" * 100)
    client.close()
    server.process.kill()
    server.process.wait()
    (log,) = (server.directory / "redis" / "appendonlydir").glob("*.incr.aof")
    whole = log.read_bytes()
    log.write_bytes(whole[:-20])
    server.restart()
    client = connect(server.url)
    assert (client.exists("first"), client.exists("second")) == (1, 0)
    client.close()
    server.process.kill()
    server.process.wait()
    first_command = whole.index(b"*3")
    log.write_bytes(whole[:first_command] + b"@@" + whole[first_command + 2 :])
    refused = second_server(server.directory)
    assert refused.returncode == 2
    assert log.name in refused.stderr
    assert "--fix" in refused.stderr


def test_waiting_for_a_server_that_never_comes_ends_with_the_reason() -> None:
    client = connect(f"redis://127.0.0.1:{free_port()}/0")
    with pytest.raises(StoreUnavailableError, match="refused"):
        wait_until_ready(client, 0.1)
    client.close()
