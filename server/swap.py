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
from rlhf_core.models.threads import QuietThread
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
        self._beside = QuietThread("swap", lambda: serving.inflight > 0)
        self._refused = 0
        """Version that could not be served; 0 for none."""
        self._noted = 0
        self._reachable = True
        self._log = structlog.get_logger()

    async def run(self) -> None:
        """Watch until cancelled."""
        try:
            while True:
                await self._look_once()
                await asyncio.sleep(POLL_SECONDS)
        finally:
            self._beside.executor.shutdown(wait=False)

    async def _look_once(self) -> None:
        try:
            await self.look()
            self._reachable = True
        except StoreUnavailableError as error:
            if self._reachable:
                self._log.warning("the live pointer cannot be read", error=str(error))
            self._reachable = False
        except Exception:
            self._log.exception("the swap watcher failed, and goes on")

    async def look(self) -> None:
        """One poll, and the swap that it calls for."""
        await self._note_served()
        live = await asyncio.to_thread(self._policies.live_version)
        self._metrics.published(live)
        if live in (0, self._refused, self._serving.policy.policy_version):
            return
        await self._follow(await asyncio.to_thread(self._policies.version, live))

    async def _follow(self, version: PolicyVersion) -> None:
        started = time.monotonic()
        self._serving.expect_swap()
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
        finally:
            self._serving.swap_is_over()

    async def _swap(self, version: PolicyVersion) -> None:
        source, serving = self._source, self._serving
        await self._timed("verify", lambda: self._verify(version))
        # Two weight sets in memory at most: a third waits on disk until the older one has drained.
        while serving.draining_policy is not None:  # noqa: ASYNC110 - the engine's thread has no loop to wake us on
            await asyncio.sleep(0.05)
        policy = await self._timed("load", lambda: source.load(version, serving.policy))
        await self._timed("probe", lambda: source.probe(policy))
        with self._metrics.policy_swap_phase.labels("flip").time():
            await serving.swap(policy)

    def _verify(self, version: PolicyVersion) -> None:
        self._source.verify(version)
        self._source.compare(version, self._serving.policy)

    async def _timed(self, phase: str, work: Callable[[], Found]) -> Found:
        with self._metrics.policy_swap_phase.labels(phase).time():
            return await asyncio.get_running_loop().run_in_executor(self._beside.executor, self._beside.quietly(work))

    async def _note_served(self) -> None:
        """Store when the version in service said its first token here."""
        version = self._serving.policy.policy_version
        at = self._serving.first_tokens.get(version)
        if at is not None and version != self._noted:
            await asyncio.to_thread(self._policies.note_served, version, at)
            self._noted = version
