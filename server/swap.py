"""The hot swap: follow the live pointer. Verify, compare, load and probe beside traffic, then flip between two steps.

Whatever fails leaves the old policy serving and is counted; that version is not tried again until the pointer moves.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

import structlog

from rlhf_core.errors import AttuneError, StoreUnavailableError
from rlhf_core.records import PolicyVersion
from rlhf_core.store.policies import PolicyStore
from server.metrics import Metrics
from server.policy_source import PolicySource
from server.serving import Serving

POLL_SECONDS = 0.5
Found = TypeVar("Found")


class SwapWatcher:
    """Polls the live version; one GET each time nothing has changed."""

    def __init__(self, policies: PolicyStore, source: PolicySource, serving: Serving, metrics: Metrics) -> None:
        self._policies = policies
        self._source = source
        self._serving = serving
        self._metrics = metrics
        self._refused = 0
        """Version that could not be served; 0 for none."""
        self._noted = 0
        self._reachable = True
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            try:
                await self.look()
                self._reachable = True
            except StoreUnavailableError as error:
                if self._reachable:
                    self._log.warning("the live pointer cannot be read", error=str(error))
                self._reachable = False
            except Exception:
                self._log.exception("the swap watcher failed, and goes on")
            await asyncio.sleep(POLL_SECONDS)

    async def look(self) -> None:
        """One poll, and the swap that it calls for."""
        await self._note_served()
        live = await asyncio.to_thread(self._policies.live_version)
        if live in (0, self._refused, self._serving.policy.policy_version):
            return
        await self._follow(await asyncio.to_thread(self._policies.version, live))

    async def _follow(self, version: PolicyVersion) -> None:
        started = time.monotonic()
        try:
            await self._swap(version)
        except StoreUnavailableError:
            raise
        except Exception as error:
            self._refused = version.policy_version
            self._metrics.policy_swaps.labels("failed").inc()
            # An AttuneError says all there is to say; anything else is ours to repair.
            trace = None if isinstance(error, AttuneError) else error
            self._log.error("swap failed", policy_version=version.policy_version, reason=str(error), exc_info=trace)
        else:
            self._metrics.policy_swaps.labels("done").inc()
            self._metrics.now_serving(version.policy_version, version.published_at)
            seconds = round(time.monotonic() - started, 3)
            self._log.info("swapped", policy_version=version.policy_version, seconds=seconds)

    async def _swap(self, version: PolicyVersion) -> None:
        source, serving = self._source, self._serving
        await self._timed("verify", lambda: source.verify(version))
        await self._timed("verify", lambda: source.compare(version, serving.policy))
        # Two weight sets in memory at most: a third waits on disk until the older one has drained.
        draining = time.monotonic()
        while serving.draining_policy is not None:  # noqa: ASYNC110 - the engine's thread has no loop to wake us on
            await asyncio.sleep(0.05)
        self._metrics.policy_swap_phase.labels("drain").observe(time.monotonic() - draining)
        policy = await self._timed("load", lambda: source.load(version))
        await self._timed("probe", lambda: source.probe(policy))
        flipping = time.monotonic()
        await serving.swap(policy)
        self._metrics.policy_swap_phase.labels("flip").observe(time.monotonic() - flipping)

    async def _timed(self, phase: str, work: Callable[[], Found]) -> Found:
        with self._metrics.policy_swap_phase.labels(phase).time():
            return await asyncio.to_thread(work)

    async def _note_served(self) -> None:
        """Store when the version in service said its first token here."""
        version = self._serving.policy.policy_version
        at = self._serving.first_tokens.get(version)
        if at is not None and version != self._noted:
            await asyncio.to_thread(self._policies.note_served, version, at)
            self._noted = version
