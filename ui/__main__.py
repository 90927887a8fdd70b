"""`python -m ui`: the chat UI. Serves at once, also while the API is down; ends within seconds of SIGTERM."""

from __future__ import annotations

import os
import signal
import sys
import threading

from rlhf_core.errors import SettingsError
from rlhf_core.settings import Settings, load_settings


def main() -> int:
    try:
        settings = load_settings(os.environ)
    except SettingsError as error:
        print(f"attune ui: {error}", file=sys.stderr)
        return 2
    return serve(settings)


def serve(settings: Settings) -> int:
    # Before gradio is imported, which reads it then: by default it reports each start to its makers.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    from ui.app import create_app, launch, open_client

    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    client = open_client(settings)
    app = create_app(client)
    try:
        launch(app, settings)
    except OSError:
        print(
            f"attune ui: port {settings.ui_port} on {settings.host} is in use; set ATTUNE_UI_PORT",
            file=sys.stderr,
        )
        return 1
    print(f"attune ui: http://{settings.host}:{settings.ui_port} (API {settings.resolved_api_url})", flush=True)
    ended.wait()
    app.close(verbose=False)
    client.close()
    return 0


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Streams still open in worker threads must not hold the process up.
    os._exit(code)
