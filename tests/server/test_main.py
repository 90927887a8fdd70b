"""The process: how it starts, how it refuses to, and how it ends."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from server.misuse import WORDY
from server.wire import CHAT, Address, Wire, request_bytes, scrape
from tests.running import free_port, server_environment, start_server, stop
from tests.server.conftest import LONG_CONTEXT, Site, chat_body, eventually, run_site, sse


@pytest.fixture
def draining_site(long_model_dir: Path, tmp_path: Path) -> Iterator[Site]:
    yield from run_site(long_model_dir, tmp_path)


def test_on_sigterm_short_answers_finish_and_long_ones_end_in_an_error_frame(draining_site: Site) -> None:
    ends: dict[int, list[str]] = {}
    started = threading.Barrier(3)

    def read(max_tokens: int) -> None:
        body = chat_body(ignore_eos=True, max_tokens=max_tokens, stream=True)
        url = f"{draining_site.server.url}/v1/chat/completions"
        with httpx.stream("POST", url, json=body, timeout=60) as response:
            started.wait()
            ends[max_tokens] = list(sse(response.iter_lines()))

    short, long = 200, LONG_CONTEXT - 100
    readers = [threading.Thread(target=read, args=(max_tokens,)) for max_tokens in (short, long)]
    for reader in readers:
        reader.start()
    started.wait()
    draining_site.server.process.send_signal(signal.SIGTERM)
    eventually(lambda: draining_site.http.get("/health/ready").status_code == 503)
    refused = draining_site.chat()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "server_draining")
    assert "retry-after" in refused.headers
    assert draining_site.http.get("/health/live").status_code == 200
    for reader in readers:
        reader.join(30)
    assert ends[short][-1] == "[DONE]"
    assert json.loads(ends[long][-1])["error"]["code"] == "server_draining"
    assert draining_site.server.process.wait(15) == 0
    record = next(found for found in draining_site.interactions.recent(2) if found.sampling.max_tokens == long)
    assert record.status == "error"
    assert 0 < len(record.token_ids) < long


def test_a_reader_that_stalls_does_not_keep_it_from_ending(draining_site: Site) -> None:
    address = Address("127.0.0.1", int(draining_site.server.url.rpartition(":")[2]))

    async def scenario() -> None:
        async with Wire.open(address, receive_buffer=2048) as wire:
            wire.send(request_bytes(CHAT, WORDY))
            await wire.head()
            wire.stop_reading()
            # Its answer fills every buffer between the two by the time the engine is done with it.
            running = 'inflight_requests{slot="active"}'
            while (await scrape(address))[running]:  # noqa: ASYNC110 - another process tells nobody
                await asyncio.sleep(0.1)
            draining_site.server.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(draining_site.server.process.wait, 30) == 0

    asyncio.run(scenario())


def test_a_setting_that_cannot_work_ends_it_in_one_sentence(tmp_path: Path) -> None:
    assert outcome(tmp_path, api_port="many") == (
        2,
        "attune server: ATTUNE_API_PORT is 'many': Expected `int`, got `str`\n",
    )


def test_a_taken_port_ends_it_in_one_sentence(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, said = outcome(tmp_path, api_port=port)
    assert (status, said) == (2, f"attune server: cannot listen on 127.0.0.1:{port}: Address already in use\n")


def test_a_model_that_does_not_exist_ends_it_in_one_sentence(site: Site, tmp_path: Path) -> None:
    # Another database of the same store, so that nothing is published there.
    url = site.store.url.removesuffix("/0") + "/1"
    status, said = outcome(tmp_path, redis_url=url, model=tmp_path / "nothing", api_port=free_port())
    assert status == 2
    assert len(said.splitlines()) == 1
    assert str(tmp_path / "nothing") in said
    assert not any((tmp_path / "checkpoints").glob("policy-*"))


def outcome(tmp_path: Path, **settings: object) -> tuple[int, str]:
    """Exit status and words of a server that cannot start."""
    named = {"data_dir": tmp_path, "redis_url": "redis://127.0.0.1:1/0", "model": "desk", **settings}
    process = start_server(server_environment(**named), tmp_path / "log")  # type: ignore[arg-type]
    try:
        return process.wait(60), (tmp_path / "log").read_text()
    finally:
        stop(process)
