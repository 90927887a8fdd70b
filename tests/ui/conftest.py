"""One scripted API per test, and a client of it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ui.scripted_api import ScriptedApi, scripted_api
from ui.client import ApiClient


@pytest.fixture
def api() -> Iterator[ScriptedApi]:
    with scripted_api() as running:
        yield running


@pytest.fixture
def client(api: ScriptedApi) -> Iterator[ApiClient]:
    connected = ApiClient(api.url, "sk-secret")
    yield connected
    connected.close()
