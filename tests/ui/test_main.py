"""The UI as a process: it serves without an API, keeps its key to itself, and ends when told to."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import httpx

from tests.running import ROOT, free_port
from tests.ui.process import running_ui, ui_environment

QUICK_SECONDS = 10.0


def outcome(**settings: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "ui"],
        cwd=ROOT,
        env=ui_environment(**settings),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_malformed_setting_is_one_sentence_and_status_2() -> None:
    assert outcome(ui_port="many") == (2, "attune ui: ATTUNE_UI_PORT is 'many': Expected `int`, got `str`\n")


def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        sentence = f"attune ui: port {port} on 127.0.0.1 is in use; set ATTUNE_UI_PORT\n"
        assert outcome(ui_port=port) == (1, sentence)


def test_it_serves_while_the_api_is_down_offers_no_api_of_its_own_and_ends_on_sigterm(tmp_path: Path) -> None:
    with running_ui(f"http://127.0.0.1:{free_port()}", tmp_path) as ui:
        assert "Attune" in httpx.get(ui.url).text
        config = httpx.get(f"{ui.url}/config").json()
        assert config["analytics_enabled"] is False
        assert {event["api_visibility"] for event in config["dependencies"]} == {"private"}
        assert httpx.get(f"{ui.url}/gradio_api/info").json()["named_endpoints"] == {}
        ui.process.terminate()
        assert ui.process.wait(QUICK_SECONDS) == 0
