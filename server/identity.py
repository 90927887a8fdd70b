"""Ids, and the pseudonyms that stand for people.

A rater's name never reaches the store: only an HMAC of it, keyed by a secret that stays in the data directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import time
from pathlib import Path

ANONYMOUS = "anonymous"


def new_id(prefix: str) -> str:
    """`prefix-` and a UUIDv7 in hex (RFC 9562, 5.7): ids sort by the millisecond of their making."""
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds << 80) | secrets.randbits(80)
    value = value & ~(0xF << 76) | (0x7 << 76)
    value = value & ~(0x3 << 62) | (0x2 << 62)
    return f"{prefix}-{value:032x}"


class Pseudonyms:
    """Turns a caller's name for a person into the name that is stored."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def of(self, name: str | None) -> str:
        """32 hex digits; the same for the same name, for as long as the secret stays."""
        return hmac.new(self._secret, (name or ANONYMOUS).encode(), hashlib.sha256).hexdigest()[:32]


def load_secret(data_path: Path) -> bytes:
    """The installation's secret, made at the first start. A link, not a write, so two starters agree on one."""
    path = data_path / "secret"
    if not path.exists():
        data_path.mkdir(parents=True, exist_ok=True)
        fresh = data_path / f".secret.{secrets.token_hex(8)}"
        descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(secrets.token_bytes(32))
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_bytes()
