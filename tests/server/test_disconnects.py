"""Clients that go away in every way, and readers that stall, against a real server with few slots."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.misuse import LEAVINGS, Leaving, leave, stall, storm
from server.vitals import Vitals, at_rest, warm_up
from server.wire import CHAT, Address, Wire, chat_bytes, request_bytes, scrape
from tests.server.conftest import LONG_CONTEXT, Site, eventually, run_site

STALL_SECONDS = 0.5
DISCONNECTS, STALLED = 8 * len(LEAVINGS), 12
"""`python -m server.soak --disconnects 500 --stalled 200 --minutes 0` is the same storm at full strength."""
GROWTH_MB = 48.0
"""Twelve stalled answers of thousands of tokens, as far as they came, and what the allocator keeps for the next."""
ENDLESS = {"ignore_eos": True, "max_tokens": LONG_CONTEXT}


@pytest.fixture(scope="module")
def crowded_site(long_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server with three slots and little patience. Tests leave it idle."""
    settings = {"max_running": 3, "max_waiting": 40, "stall_seconds": STALL_SECONDS}
    yield from run_site(long_model_dir, tmp_path_factory.mktemp("crowded"), **settings)


def address_of(site: Site) -> Address:
    return Address("127.0.0.1", int(site.server.url.rpartition(":")[2]))


@pytest.mark.parametrize("leaving", LEAVINGS, ids=lambda leaving: leaving.__name__)
def test_whoever_leaves_leaves_nothing_behind(crowded_site: Site, leaving: Leaving) -> None:
    async def scenario() -> Vitals:
        address = address_of(crowded_site)
        for _ in range(4):
            await leave(address, leaving)
        return await at_rest(crowded_site.server.process.pid, address)

    vitals = asyncio.run(scenario())
    assert vitals.requests == 0
    assert crowded_site.chat().status_code == 200
    eventually(lambda: "streaming" not in {record.status for record in crowded_site.interactions.recent(4)})


def test_a_storm_of_disconnects_and_stalls_leaves_no_request_task_descriptor_or_thread(crowded_site: Site) -> None:
    async def scenario() -> tuple[Vitals, int, Vitals]:
        address, process_id = address_of(crowded_site), crowded_site.server.process.pid
        await warm_up(address)
        await storm(address, len(LEAVINGS), 2, STALL_SECONDS)
        before = await at_rest(process_id, address)
        cut = await storm(address, DISCONNECTS, STALLED, STALL_SECONDS)
        return before, cut, await at_rest(process_id, address, before)

    before, cut, after = asyncio.run(scenario())
    assert cut == STALLED
    assert after.requests == 0
    assert after.tasks <= before.tasks
    assert after.descriptors <= before.descriptors
    assert after.threads <= before.threads
    assert after.megabytes - before.megabytes < GROWTH_MB
    assert crowded_site.chat().status_code == 200


def test_a_stalled_reader_is_counted_as_that_and_not_as_gone(crowded_site: Site) -> None:
    async def scenario() -> tuple[dict[str, float], dict[str, float]]:
        address = address_of(crowded_site)
        before = await scrape(address)
        assert await stall(address, 2 * STALL_SECONDS + 1)
        await at_rest(crowded_site.server.process.pid, address)
        return before, await scrape(address)

    before, after = asyncio.run(scenario())
    for cause, more in (("stalled", 1), ("client_gone", 0)):
        name = f'request_aborted_total{{cause="{cause}"}}'
        assert after[name] == before[name] + more
    record = crowded_site.interactions.recent(1)[0]
    assert record.status == "aborted"
    assert 0 < len(record.token_ids) < LONG_CONTEXT // 2


def test_a_sender_that_never_finishes_is_cut_off(crowded_site: Site) -> None:
    async def scenario(said: bytes) -> bytes:
        async with asyncio.timeout(20), Wire.open(address_of(crowded_site)) as wire:
            wire.send(said)
            return await wire.rest()

    whole = request_bytes(CHAT, chat_bytes())
    for said in (b"", whole[:20], whole[:-5]):
        assert asyncio.run(scenario(said)) == b""


def test_a_connection_serves_on_after_a_pause_that_is_no_stall(crowded_site: Site) -> None:
    async def scenario() -> list[int]:
        async with asyncio.timeout(20), Wire.open(address_of(crowded_site)) as wire:
            statuses = []
            for _ in range(2):
                wire.send(request_bytes(CHAT, chat_bytes(max_tokens=4)))
                statuses.append((await wire.reply()).status)
                await asyncio.sleep(2 * STALL_SECONDS)
            return statuses

    assert asyncio.run(scenario()) == [200, 200]


def test_pipelined_requests_are_answered_in_their_order(crowded_site: Site) -> None:
    async def scenario() -> list[int]:
        async with asyncio.timeout(20), Wire.open(address_of(crowded_site)) as wire:
            asked = [chat_bytes(ignore_eos=True, max_tokens=tokens) for tokens in (30, 2, 5)]
            wire.send(b"".join(request_bytes(CHAT, body) for body in asked))
            return [(await wire.reply()).json()["usage"]["completion_tokens"] for _ in asked]

    assert asyncio.run(scenario()) == [30, 2, 5]


def test_an_endless_pipeline_is_cut_off(crowded_site: Site) -> None:
    async def scenario() -> bytes:
        async with asyncio.timeout(20), Wire.open(address_of(crowded_site)) as wire:
            wire.send(request_bytes(CHAT, chat_bytes(**ENDLESS)) * 40)
            return await wire.rest()

    assert asyncio.run(scenario()) == b""
