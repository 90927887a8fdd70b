"""Ids and pseudonyms."""

from __future__ import annotations

import stat
import uuid
from pathlib import Path

from server.identity import Pseudonyms, load_secret, new_id


def test_ids_are_uuid7_and_sort_by_time() -> None:
    ids = [new_id("chatcmpl") for _ in range(50)]
    parsed = [uuid.UUID(name.removeprefix("chatcmpl-")) for name in ids]
    assert {found.version for found in parsed} == {7}
    assert {found.variant for found in parsed} == {uuid.RFC_4122}
    assert len(set(ids)) == 50
    milliseconds = [found.int >> 80 for found in parsed]
    assert milliseconds == sorted(milliseconds)


def test_a_pseudonym_is_stable_keyed_and_not_the_name() -> None:
    ours, theirs = Pseudonyms(b"ours"), Pseudonyms(b"theirs")
    assert ours.of("ada") == ours.of("ada") != ours.of("bob")
    assert ours.of("ada") != theirs.of("ada")
    assert ours.of(None) == ours.of("") == ours.of("anonymous")
    assert len(ours.of("ada")) == 32


def test_the_secret_is_made_once_and_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    secret = load_secret(data)
    assert load_secret(data) == secret
    assert len(secret) == 32
    assert stat.S_IMODE((data / "secret").stat().st_mode) == 0o600
    assert [path.name for path in data.iterdir()] == ["secret"]
