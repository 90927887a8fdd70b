"""`python -m server`: settings, store, policy, port; then HTTP until a signal.

Everything that can be wrong is found before the port is opened and ends in one sentence: status 2 for what a restart
cannot repair, 1 for what it may. Nothing listens before the policy is loaded and probed.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvicorn

from rlhf_core.errors import AttuneError, SettingsError, StoreUnavailableError
from rlhf_core.settings import Settings, load_settings
from server.protocol import SEND_BUFFER, http_protocol
from server.stores import Stores, open_stores

STORE_WAIT_SECONDS = 60.0
GRACE_SECONDS = 8
DRAIN_SECONDS = GRACE_SECONDS - 1.0
"""Answers run this long after SIGTERM; the rest of the grace is for the last frames."""


class DrainingServer(uvicorn.Server):
    """Refuses new work in words while running answers finish, and closes the port only then."""

    def __init__(
        self, config: uvicorn.Config, drain: Callable[[Callable[[], bool]], Coroutine[Any, Any, None]]
    ) -> None:
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._drain(lambda: self.force_exit)
        await super().shutdown(sockets)


def main() -> int:
    _log_as_json()
    try:
        settings = load_settings(os.environ)
        listener = _bind(settings)
        return serve(settings, listener, _wait_for_stores(settings))
    except StoreUnavailableError as error:
        print(f"attune server: no record store at start: {error}", file=sys.stderr)
        return 1
    except AttuneError as error:
        print(f"attune server: {error}", file=sys.stderr)
        return 2


def serve(settings: Settings, listener: socket.socket, stores: Stores) -> int:
    """Load the live policy and answer until a signal."""
    _set_tensor_environment(settings)
    from rlhf_core.models.placement import describe
    from rlhf_core.models.threads import in_passing_thread
    from server.app import create_app
    from server.identity import Pseudonyms, load_secret
    from server.metrics import Metrics
    from server.policy_source import first_servable, publish_first, source_for_machine
    from server.serving import Serving, make_engine

    live = publish_first(stores.policies, settings)
    source = source_for_machine(settings, live)
    policy = in_passing_thread(lambda: first_servable(source, live, stores.policies.ledger()))
    metrics = Metrics()
    metrics.now_serving(policy.policy_version, live.published_at)
    running, waiting = settings.max_running, settings.max_waiting
    engine = make_engine(policy, settings)
    serving = Serving(engine, max_running=running, max_waiting=waiting, metrics=metrics)
    pseudonyms = Pseudonyms(load_secret(settings.data_path))
    app = create_app(settings, stores, serving, source, pseudonyms, metrics)
    stalled = metrics.request_aborted.labels("stalled")
    config = uvicorn.Config(
        app,
        http=http_protocol(settings.stall_seconds, stalled.inc),
        ws="none",
        timeout_graceful_shutdown=GRACE_SECONDS,
        timeout_keep_alive=75,
        server_header=False,
        access_log=False,
        log_config=None,
    )
    where = {"host": settings.host, "port": settings.api_port}
    structlog.get_logger().info("serving", **where, policy_version=policy.policy_version, **describe(policy))
    # This function lasts as long as the process: held here, the first policy would outlive every swap.
    del policy
    _forget_garbage()
    return _run(DrainingServer(config, lambda hurry: serving.drain(DRAIN_SECONDS, hurry)), listener)


def _forget_garbage() -> None:
    """Keep the collector off what was there at the start: its libraries' objects are many, and looking through them
    all stops every stream for a tenth of a second or more."""
    gc.collect()
    gc.freeze()


def _set_tensor_environment(settings: Settings) -> None:
    """Read by torch and transformers as they are imported, which is why `serve` imports them late."""
    if settings.serve_threads:
        os.environ["OMP_NUM_THREADS"] = str(settings.serve_threads)
    # Weights on huge pages, where the system has them: a step reads them all, and looks up fewer addresses.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    # Progress bars and hints for notebooks are no log lines.
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")


def _run(server: uvicorn.Server, listener: socket.socket) -> int:
    """uvicorn raises the signal that ended it again once it has shut down: an ordered end is status 0."""

    def stop_early(*_: object) -> None:
        server.should_exit = True

    signal.signal(signal.SIGTERM, stop_early)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listener])
    except OSError as error:
        # A bound port is not ours before we listen: another process may have been faster.
        raise SettingsError(f"cannot listen on {listener.getsockname()}: {error.strerror}") from None
    return 0 if server.started else 1


def _bind(settings: Settings) -> socket.socket:
    """Hold the port from the start, without listening yet. Raises SettingsError when it is taken."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    # Connections inherit it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        listener.bind((settings.host, settings.api_port))
    except OSError as error:
        reason = error.strerror or str(error)
        raise SettingsError(f"cannot listen on {settings.host}:{settings.api_port}: {reason}") from None
    return listener


def _wait_for_stores(settings: Settings) -> Stores:
    """The stores, once they answer. Raises StoreUnavailableError after STORE_WAIT_SECONDS.

    The embedded server writes its address as it starts, so the address is read again for each try.
    """
    until = time.monotonic() + STORE_WAIT_SECONDS
    waiting = False
    while True:
        try:
            return open_stores(settings.resolved_redis_url, 1.0)
        except StoreUnavailableError:
            if time.monotonic() >= until:
                raise
        if not waiting:
            structlog.get_logger().warning("waiting for the record store", seconds=STORE_WAIT_SECONDS)
        waiting = True


def _log_as_json() -> None:
    """JSON lines on stderr: the encoding is also what keeps a caller's text from forging a line."""
    logging.basicConfig(
        level=logging.WARNING, format='{"level": "%(levelname)s", "logger": "%(name)s", "event": "%(message)s"}'
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )


if __name__ == "__main__":
    sys.exit(main())
