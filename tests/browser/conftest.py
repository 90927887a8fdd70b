"""Chromium, a real server with the bundled model, and a real UI process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Dialog, Page, Request, expect, sync_playwright

from rlhf_core.store.embedded import start_embedded
from tests.running import free_port, running_server
from tests.ui.process import running_ui

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PATIENCE_MS = 30_000
"""A machine that also trains answers late; what never comes still fails."""
NAMES = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Watched:
    """A page, and what it did that it should not."""

    page: Page
    dialogs: list[str] = field(default_factory=list)
    strangers: list[str] = field(default_factory=list)
    """Requests to anything but this machine."""
    faults: list[str] = field(default_factory=list)
    """Uncaught exceptions of the page's scripts."""


@dataclass(frozen=True)
class Site:
    ui_url: str
    api: httpx.Client

    def rating(self, interaction_id: str) -> dict[str, object]:
        """What the API has stored, without what only the log needs."""
        body: dict[str, object] = self.api.get(f"/v1/interactions/{interaction_id}/rating").json()
        body.pop("event_id", None)
        return body


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    binary = next((path for name in NAMES if (path := shutil.which(name))), None)
    if binary is None:
        message = "no Chromium on this machine: the UI was not tested in a browser"
        if os.environ.get("ATTUNE_CI") == "1":
            pytest.fail(message)
        pytest.skip(message)
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=binary, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("browser")
    with (
        start_embedded(directory / "store", free_port()) as store,
        running_server(directory / "data", store.url, "desk") as server,
        running_ui(server.url, directory) as ui,
        httpx.Client(base_url=server.url, timeout=30.0) as api,
    ):
        yield Site(ui.url, api)


@pytest.fixture
def watched(browser: Browser) -> Iterator[Watched]:
    """A page with an empty profile. Fails the test if a dialog opened or a request left this machine."""
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    seen = Watched(context.new_page())
    seen.page.on("dialog", lambda dialog: _dismiss(dialog, seen))
    seen.page.on("request", lambda request: _check(request, seen))
    seen.page.on("pageerror", lambda error: seen.faults.append(str(error)))
    yield seen
    context.close()
    assert (seen.dialogs, seen.strangers, seen.faults) == ([], [], [])


def _dismiss(dialog: Dialog, seen: Watched) -> None:
    seen.dialogs.append(dialog.message)
    dialog.dismiss()


def _check(request: Request, seen: Watched) -> None:
    parts = urlsplit(request.url)
    if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
        seen.strangers.append(request.url)
