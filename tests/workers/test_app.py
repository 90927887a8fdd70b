from __future__ import annotations

import os
import subprocess
import sys

from rlhf_core.settings import Secret, Settings
from tests.running import ROOT
from workers.app import create_app


def test_the_worker_and_its_tasks_never_load_torch() -> None:
    program = "import sys, workers.app, workers.tasks; print('torch' in sys.modules, 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_a_broken_setting_stops_the_worker_with_one_sentence() -> None:
    environment = {**os.environ, "ATTUNE_PPO_UPDATES": "many"}
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "report"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("attune worker: ATTUNE_PPO_UPDATES is 'many'")


def test_queues_are_json_under_their_own_prefix_and_training_has_its_own_queue() -> None:
    app = create_app(Settings(redis_url=Secret("redis://127.0.0.1:1/0")))
    assert app.conf.broker_transport_options["global_keyprefix"] == "attune:q:"
    assert app.conf.accept_content == ["json"]
    assert app.conf.task_routes["attune.train"] == {"queue": "train"}
    assert app.tasks["attune.train"].acks_late is False
    assert app.tasks["attune.look"].acks_late is True
