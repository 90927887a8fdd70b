"""The whole UI on one screen: a strip, three tabs, one timer. Layout and wiring; what they do is in the modules."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from rlhf_core.settings import Settings
from ui.client import ApiClient, ApiError
from ui.conversation import Conversation
from ui.replies import Status
from ui.strip import strip_html
from ui.tabs.chat import chat_tab, restore
from ui.tabs.compare import compare_tab
from ui.tabs.dashboard import dashboard_panels, dashboard_tab, fingerprint
from ui.theme import STYLE, attune_theme

TICK_SECONDS = 2.0
ASSETS = Path(__file__).parent / "assets"
TIMES = (ASSETS / "times.js").read_text()
KEYS = (ASSETS / "keys.js").read_text()
HEADER = '<header class="top"><h1>Attune</h1><p>A model that learns from your ratings</p></header>'
PANELS = 4
"""Outputs of the dashboard."""


def tick(client: ApiClient, seen: dict[str, Any]) -> tuple[Any, ...]:
    """One status call per session and tick; `seen` is what the session shows, so that only news is sent."""
    status = _status(client)
    strip = strip_html(status)
    news: tuple[Any, ...] = (gr.skip() if seen.get("strip") == strip else strip,)
    seen["strip"] = strip
    if status is None or seen.get("panels") == fingerprint(status):
        return (*news, *(gr.skip() for _ in range(PANELS)))
    seen["panels"] = fingerprint(status)
    return (*news, *dashboard_panels(status))


def _status(client: ApiClient) -> Status | None:
    try:
        return client.status()
    except ApiError:
        return None


def create_app(client: ApiClient) -> gr.Blocks:
    with gr.Blocks(title="Attune", analytics_enabled=False, fill_width=False) as app:
        conversation, seen = gr.State(Conversation()), gr.State({})
        # The secret only scrambles two random ids in the browser's own storage; fixed, so that they outlive a restart.
        browser = gr.BrowserState({}, storage_key="attune", secret="attune")
        gr.HTML(HEADER, elem_id="header", apply_default_css=False)
        strip = gr.HTML(strip_html(None), elem_id="strip", apply_default_css=False, js_on_load=TIMES)
        with gr.Tabs(elem_id="tabs"):
            with gr.Tab("Chat"):
                transcript = chat_tab(client, conversation, browser)
            with gr.Tab("Compare"):
                compare_tab(client, conversation)
            with gr.Tab("Dashboard"):
                panels = dashboard_tab(TIMES)
        quiet: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        ticking, shown = partial(tick, client), [strip, *panels.outputs]
        app.load(partial(restore, client), [conversation, browser], [transcript, browser], **quiet)
        app.load(ticking, seen, shown, **quiet)
        gr.Timer(TICK_SECONDS).tick(ticking, seen, shown, **quiet)
    return app


def open_client(settings: Settings) -> ApiClient:
    return ApiClient(settings.resolved_api_url, settings.api_key.reveal())


def launch(app: gr.Blocks, settings: Settings) -> None:
    """Serve from a thread of this process. Raises OSError when the port is taken."""
    app.queue(default_concurrency_limit=32, api_open=False).launch(
        server_name=settings.host,
        server_port=settings.ui_port,
        prevent_thread_lock=True,
        quiet=True,
        share=False,
        inbrowser=False,
        ssr_mode=False,
        mcp_server=False,
        enable_monitoring=False,
        max_file_size=0,
        footer_links=[],
        theme=attune_theme(),
        css_paths=STYLE,
        head=f"<script>{KEYS}</script>",
    )
