"""The whole loop with real processes: `attune up`, people over HTTP, a new policy live, undone, all of it ended."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from rlhf_core.records import Message
from tests.e2e import shop
from tests.running import ROOT, free_port
from ui.client import ApiClient
from ui.replies import Status

LEARN_SECONDS = 150.0
JUDGEMENTS = 160


@dataclass
class Attune:
    """One `attune up` and where to find it."""

    process: subprocess.Popen[str]
    environment: dict[str, str]
    client: ApiClient
    data_dir: Path

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run_attune(self.environment, *arguments)

    def children(self, part: str) -> list[psutil.Process]:
        """Running processes of this installation whose command line has `part`."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in family if part in command_line(child)]


def command_line(process: psutil.Process) -> str:
    """Empty for a process that has just ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def run_attune(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rlhf_core.cli", *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture(scope="module")
def attune(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attune]:
    folder = tmp_path_factory.mktemp("loop")
    model = shop.build(folder / "shop")
    ports = {"API_PORT": free_port(), "UI_PORT": free_port(), "REDIS_PORT": free_port()}
    settings = {
        **ports,
        "DATA_DIR": folder / "data",
        "MODEL": model,
        "MAX_CONTEXT": 128,
        "REWARD_MIN_FEEDBACK": JUDGEMENTS,
        "PPO_MIN_FEEDBACK": JUDGEMENTS,
        "PPO_UPDATES": 24,
        "PPO_ROLLOUTS": 96,
        "PPO_MINIBATCH_SIZE": 48,
        "PPO_LEARNING_RATE": 3e-4,
        "PPO_MAX_NEW_TOKENS": 24,
        "GATE_PROMPTS": 64,
        "SERVE_THREADS": 1,
        "TRAIN_THREADS": 1,
    }
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ATTUNE_")}
    environment = inherited | {f"ATTUNE_{name}": str(value) for name, value in settings.items()}
    log = (folder / "up.log").open("w+")
    process = subprocess.Popen(
        [sys.executable, "-m", "rlhf_core.cli", "up"],
        env=environment,
        cwd=ROOT,
        stdout=log,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    client = ApiClient(f"http://127.0.0.1:{ports['API_PORT']}", call_seconds=30)
    running = Attune(process, environment, client, folder / "data")
    try:
        wait_until(lambda: "Ctrl-C ends everything" in (folder / "up.log").read_text(), 90, folder / "up.log")
        yield running
    finally:
        client.close()
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            process.wait(20)
        log.close()


def wait_until(done: Callable[[], bool], seconds: float, log: Path | None = None) -> None:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if done():
            return
        time.sleep(0.2)
    raise AssertionError(f"not within {seconds} s{': ' + log.read_text()[-2000:] if log else ''}")


def live_version(status: Status) -> int:
    return status.live.policy_version if status.live else 0


def verdicts(status: Status) -> int:
    """Policy trainings that have ended."""
    return len(status.rejected) + sum(version.actor == "gate" for version in status.versions)


def ask_and_rate(client: ApiClient, question: str) -> bool:
    """One question, one thumb by the shop's taste. Whether it was up."""
    answer = client.chat([Message("user", question)], user="tester", max_tokens=24)
    good = shop.is_polite(answer.text)
    client.rate(answer.interaction_id, "up" if good else "down")
    return good


def test_feedback_becomes_a_better_policy_that_is_live(attune: Attune) -> None:
    client = attune.client
    first = client.status()
    assert live_version(first) == 1
    assert first.feedback.until_policy == JUDGEMENTS
    before = rounds = 0
    # With so few held-out prompts the gate may refuse a better policy once by chance; people then go on.
    while live_version(client.status()) == 1 and rounds < 3:
        asked = shop.questions(seed=5 + rounds)[:JUDGEMENTS]
        before += sum(ask_and_rate(client, question) for question in asked)
        rounds += 1
        wait_until(lambda rounds=rounds: verdicts(client.status()) >= rounds, LEARN_SECONDS)  # type: ignore[misc]
    wait_until(lambda: client.chat([Message("user", "hello")], max_tokens=4).policy_version == 2, 10)
    share_before = before / (rounds * JUDGEMENTS)
    assert 0.3 < share_before < 0.7

    after = sum(ask_and_rate(client, question) for question in shop.questions(seed=50)[:80])
    assert after / 80 > share_before + 0.2
    rows = {row.policy_version: row for row in client.status().approval}
    assert (rows[1].n, rows[2].n) == (rounds * JUDGEMENTS, 80)
    assert rows[2].lo is not None
    assert rows[1].hi is not None
    assert rows[2].lo > rows[1].hi
    published = client.status().versions[-1]
    assert published.gate is not None
    assert published.gate.accepted
    assert published.seconds_to_first_token is not None


def test_every_judgement_is_in_exactly_one_batch(attune: Attune) -> None:
    from rlhf_core.preferences import load_batches
    from rlhf_core.settings import load_settings
    from rlhf_core.store.connection import connect
    from rlhf_core.store.feedback import FeedbackStore

    settings = load_settings(attune.environment)
    store = FeedbackStore(connect(settings.resolved_redis_url))
    batches = load_batches(settings.batches_path, store.batches())
    used = [rating.event_id for batch in batches for rating in batch.ratings]
    assert len(used) == len(set(used)) >= JUDGEMENTS


def test_the_operator_lists_and_undoes_it(attune: Attune) -> None:
    listed = attune.command("policies")
    assert listed.returncode == 0, listed.stderr
    assert listed.stdout.count("policy-") == 2
    assert "* " + f"{2:>6}" in listed.stdout

    undone = attune.command("rollback")
    assert undone.returncode == 0, undone.stderr
    assert "policy 3 is published" in undone.stdout
    wait_until(lambda: attune.client.chat([Message("user", "hello")], max_tokens=4).policy_version == 3, 10)
    versions = attune.client.status().versions
    assert versions[-1].checkpoint_id == versions[0].checkpoint_id

    again = attune.command("rollback")
    assert again.returncode == 1
    assert "there is nothing to roll back to" in again.stderr


def test_publishing_something_broken_is_one_sentence_and_changes_nothing(attune: Attune, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for directory in (empty, tmp_path / "absent"):
        refused = attune.command("publish", str(directory))
        assert refused.returncode == 1
        assert len(refused.stderr.strip().splitlines()) == 1
        assert str(directory) in refused.stderr
    assert live_version(attune.client.status()) == 3


def test_a_second_up_on_the_same_data_refuses(attune: Attune) -> None:
    second = run_attune(attune.environment, "up")
    assert second.returncode == 2
    assert "another Attune already runs on" in second.stderr
    assert live_version(attune.client.status()) == 3


@pytest.mark.parametrize("part", ["-m server", "rlhf_core.store.embedded", "-m ui"])
def test_a_process_that_dies_is_restarted(attune: Attune, part: str) -> None:
    part = "valkey" if "embedded" in part and not attune.children(part) else part
    part = "redis-server" if not attune.children(part) else part
    victim = attune.children(part)[0]
    victim.send_signal(signal.SIGKILL)
    wait_until(lambda: any(child.pid != victim.pid for child in attune.children(part)), 30)
    wait_until(lambda: answers(attune.client), 60)
    assert live_version(attune.client.status()) == 3


def answers(client: ApiClient) -> bool:
    from ui.client import ApiError

    try:
        return bool(client.chat([Message("user", "hello")], max_tokens=4).interaction_id)
    except ApiError:
        return False


def test_ctrl_c_ends_all_of_it(attune: Attune) -> None:
    family = psutil.Process(attune.process.pid).children(recursive=True)
    assert len(family) >= 6
    attune.process.send_signal(signal.SIGINT)
    assert attune.process.wait(15) == 0
    _gone, alive = psutil.wait_procs(family, timeout=1)
    assert not alive, [process.cmdline() for process in alive]
