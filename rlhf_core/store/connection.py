"""The connection to the Redis-protocol server that holds the records.

Timeouts are short and there is one retry: with redis-py's defaults a hung server would hold a request for a
minute. The retry may send a write twice, so every write of the store is harmless to repeat.
"""

from __future__ import annotations

import time
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from rlhf_core.errors import SettingsError, StoreUnavailableError


class StoreClient(redis.Redis):
    """A client whose every failure is one StoreUnavailableError."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)
        except NoScriptError:
            raise  # redis-py answers it by loading the script and calling again
        except RedisError as error:
            raise StoreUnavailableError(f"the record store did not do {args[0]}: {error}") from error


def connect(url: str, *, socket_timeout: float = 0.5) -> redis.Redis:
    """A client for the request path; a worker that reads many records passes a longer `socket_timeout`."""
    try:
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=64,
            timeout=0.5,
            socket_connect_timeout=0.3,
            socket_timeout=socket_timeout,
            retry=Retry(NoBackoff(), 1),
            health_check_interval=15,
            decode_responses=False,
        )
    except ValueError:
        # Without the reason: it may quote a part of the password.
        raise SettingsError("ATTUNE_REDIS_URL is not a Redis address, such as redis://:password@host:6379/0") from None
    return StoreClient(connection_pool=pool)


def wait_until_ready(client: redis.Redis, seconds: float) -> None:
    """Ping until the server answers. Raises StoreUnavailableError with the last reason after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            client.ping()
            return
        except StoreUnavailableError:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


def text(value: Any) -> str:
    """A reply as text. Replies are bytes, because records are."""
    return value.decode() if isinstance(value, bytes) else str(value)
