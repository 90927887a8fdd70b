"""The Celery application: broker settings, the two tasks and the timetable, wired on one screen.

Celery on Redis may lose a message or deliver it twice; nothing here depends on either. Run as
`celery -A workers.app worker --pool prefork --concurrency 2 --queues ingest,train`, with REMAP_SIGTERM=SIGQUIT in the
environment, and one `celery -A workers.app beat`.
"""

from __future__ import annotations

import logging
import os
import sys
import time

from celery import Celery

from rlhf_core.errors import SettingsError
from rlhf_core.settings import Settings, load_settings
from workers import tasks
from workers.stores import open_stores

SOFT_SHUTDOWN_SECONDS = 3
"""How long a stopping worker waits for its tasks. A training is stopped, not waited for: its job goes on later."""


TALKATIVE = ("celery.worker.strategy", "celery.worker.request", "celery.app.trace", "celery.beat")
"""Loggers that would write three lines for each look."""


def create_app(settings: Settings) -> Celery:
    stores = open_stores(settings)
    app = Celery("attune", broker=settings.resolved_broker_url)
    app.conf.update(_configuration(settings))

    @app.task(name="attune.look", shared=False, soft_time_limit=60, time_limit=90)
    def look() -> None:
        tasks.look(stores, settings, train.delay, time.time())

    @app.task(name="attune.train", shared=False, acks_late=False)
    def train(job_id: str) -> None:
        tasks.train(stores, settings, job_id)

    return app


def _configuration(settings: Settings) -> dict[str, object]:
    return {
        "broker_transport_options": {
            "global_keyprefix": "attune:q:",
            # Twice the longest time limit of a task that is acknowledged late; the same in every process.
            "visibility_timeout": 1200,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "max_connections": 32,
        },
        "broker_connection_retry_on_startup": True,
        "broker_pool_acquire_timeout": 5,
        "task_publish_retry_policy": {
            "max_retries": 2,
            "interval_start": 0,
            "interval_step": 0.2,
            "interval_max": 0.5,
        },
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": True,
        "task_acks_on_failure": True,
        "task_acks_on_timeout": True,
        "task_reject_on_worker_lost": False,
        "task_default_queue": "ingest",
        "task_routes": {"attune.train": {"queue": "train"}},
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_soft_shutdown_timeout": SOFT_SHUTDOWN_SECONDS,
        "worker_enable_remote_control": False,
        "worker_hijack_root_logger": True,
        "beat_schedule_filename": str(settings.data_path / "beat-schedule"),
        # A look that nobody took within its period is dropped, so that they never pile up.
        "beat_schedule": {
            "look": {
                "task": "attune.look",
                "schedule": tasks.LOOK_SECONDS,
                "options": {"expires": tasks.LOOK_SECONDS},
            }
        },
    }


def _app_of_this_process() -> Celery:
    try:
        settings = load_settings(os.environ)
    except SettingsError as error:
        print(f"attune worker: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.WARNING)
    return create_app(settings)


app = _app_of_this_process()
