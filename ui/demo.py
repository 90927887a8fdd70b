"""`make demo`: scripted raters teach the running system, over HTTP alone.

Their taste is stated in `rlhf_core/desk/raters.py`: courteous, helpful and safe is good. They chat, rate, compare and
wait for new versions; nothing here knows how the system learns. Ends with a table, one row per version, and a plot.
"""

from __future__ import annotations

import argparse
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from rlhf_core.desk.grammar import INTENTS
from rlhf_core.desk.raters import Customer, Rater
from rlhf_core.errors import AttuneError, SettingsError
from rlhf_core.settings import load_settings
from ui.client import ApiClient, ApiError
from ui.demo_report import save_plot, table
from ui.replies import Status

PEOPLE = 4
"""Customers at once: enough to fill a batch, few enough to leave a small machine its interface."""
COMPARE_EVERY = 4
"""One question in so many is answered twice, for a choice."""
POLL_SECONDS = 0.5


Verdicts = tuple[int, str, str]
"""How many the gate published, the last that it refused, and the last training that failed."""


class Person:
    """A customer who rates what they were told. Each has a seed of their own, so a run can be repeated."""

    def __init__(self, client: ApiClient, seed: int, number: int) -> None:
        self._client = client
        self._customer = Customer(seed * 1000 + number)
        self._rater = Rater(seed * 1000 + number)
        self._name = f"demo-{seed}-{number}"
        self._asked = 0

    def ask(self, compare: bool = True) -> None:
        """One question and one judgement: a rating, or every so often a choice between two answers."""
        self._asked += 1
        if compare and self._asked % COMPARE_EVERY == 0:
            self._choose()
        else:
            self._rate()

    def _rate(self) -> None:
        prompt = self._customer.next_prompt()
        answer = self._client.chat(prompt.messages, user=self._name)
        judgement = self._rater.rate(prompt, answer.text)
        self._client.rate(answer.interaction_id, judgement.value, judgement.reasons)

    def _choose(self) -> None:
        prompt = self._customer.next_prompt()
        comparison_id = self._client.compare(prompt.messages, user=self._name)
        texts = {"left": "", "right": ""}
        for event in self._client.comparison_events(comparison_id):
            if event.slot is not None:
                texts[event.slot] += event.delta
        self._client.choose(comparison_id, self._rater.choose(prompt, texts["left"], texts["right"]))


class Demo:
    """One run: teach, wait for the verdict, repeat; then rate the last version until its approval is known."""

    def __init__(self, client: ApiClient, people: Sequence[Person], deadline: float, bar: tqdm[None]) -> None:
        self._client = client
        self._people = people
        self._deadline = deadline
        self._bar = bar

    def play(self, cycles: int, last_ratings: int) -> None:
        for cycle in range(1, cycles + 1):
            if self._out_of_time():
                break
            before = verdicts(self._client.status())
            self._teach(f"cycle {cycle}/{cycles}: asking and rating", before)
            self._wait_for_verdict(f"cycle {cycle}/{cycles}: learning", before)
        self._measure(last_ratings)

    def _teach(self, words: str, before: Verdicts) -> None:
        """Judgements until enough are in for the next policy training, or it has begun."""
        needed = self._client.status().feedback.until_policy
        self._bar.reset(total=needed)

        def done(status: Status) -> bool:
            self._show(max(0, needed - status.feedback.until_policy), words)
            begun = status.training is not None and status.training.kind == "policy"
            enough = status.feedback.until_policy <= 0 and not is_stuck(status)
            return begun or enough or verdicts(status) != before

        self._everybody_asks(done, compare=True)

    def _measure(self, ratings: int) -> None:
        """Ratings of the version that is live at the end, so that its interval is as narrow as the first one's."""
        live = self._client.status().live
        version = live.policy_version if live else 0
        self._bar.reset(total=ratings)

        def done(status: Status) -> bool:
            rated = next((row.n for row in status.approval if row.policy_version == version), 0)
            self._show(min(rated, ratings), f"rating policy {version}")
            return rated >= ratings

        self._everybody_asks(done, compare=False)

    def _everybody_asks(self, done: Callable[[Status], bool], compare: bool) -> None:
        stop = threading.Event()

        def keep_asking(person: Person) -> None:
            while not stop.is_set():
                person.ask(compare)

        with ThreadPoolExecutor(len(self._people)) as pool:
            running = [pool.submit(keep_asking, person) for person in self._people]
            try:
                while not done(self._client.status()) and not self._out_of_time():
                    if any(future.done() for future in running):
                        break
                    time.sleep(POLL_SECONDS)
            finally:
                stop.set()
        for future in running:
            future.result()

    def _wait_for_verdict(self, words: str, before: Verdicts) -> None:
        """Until the policy training that the feedback started has ended, whatever it decided."""
        self._bar.reset(total=100)
        while not self._out_of_time():
            status = self._client.status()
            training = status.training
            stage = f"{training.kind} training, {training.stage}" if training else "about to start"
            self._show(int(100 * training.progress) if training else 0, f"{words} ({stage})")
            if verdicts(status) != before:
                return
            time.sleep(POLL_SECONDS)

    def _show(self, done: int, words: str) -> None:
        self._bar.set_description_str(words, refresh=False)
        self._bar.n = done
        self._bar.refresh()

    def _out_of_time(self) -> bool:
        return time.monotonic() > self._deadline


def verdicts(status: Status) -> Verdicts:
    """Changes exactly when a policy training ended: published, refused, or failed."""
    published = sum(version.actor == "gate" for version in status.versions)
    refused = status.rejected[0].job_id if status.rejected else ""
    job = status.last_job
    lost = job.job_id if job and job.kind == "policy" and job.state in ("failed", "dead") else ""
    return published, refused, lost


def is_stuck(status: Status) -> bool:
    """Whether a training failed and nothing follows it: only more judgements start another."""
    job = status.last_job
    return status.training is None and job is not None and job.state in ("failed", "dead")


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        settings = load_settings(os.environ)
        client = ApiClient(settings.resolved_api_url, settings.api_key.reveal(), call_seconds=60.0)
        status = _ready_status(client, settings.resolved_api_url)
        return _run(client, options, status)
    except SettingsError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except AttuneError as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make demo", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED", "0")), help="of the scripted people")
    parser.add_argument("--cycles", type=int, default=3, help="policy trainings to wait for")
    parser.add_argument("--ratings", type=int, default=180, help="ratings of the last version")
    parser.add_argument("--minutes", type=float, default=12.0, help="end the teaching after so long")
    parser.add_argument("--plot", type=Path, default=None, help="where to save the plot")
    return parser


def _ready_status(client: ApiClient, url: str) -> Status:
    try:
        return client.status()
    except ApiError as error:
        if error.status:
            raise
        raise ApiError(f"nothing answers at {url}; run `make up` in another terminal first") from error


def _run(client: ApiClient, options: argparse.Namespace, first: Status) -> int:
    live = first.live.policy_version if first.live else 0
    print(f"Scripted raters (seed {options.seed}) teach policy {live}: {len(INTENTS)} kinds of question, one taste.")
    started = time.monotonic()
    people = [Person(client, options.seed, number) for number in range(PEOPLE)]
    with tqdm(total=100, bar_format="{desc:58.58} |{bar:24}| {n_fmt:>4}/{total_fmt} {elapsed}") as bar:
        Demo(client, people, started + 60 * options.minutes, bar).play(options.cycles, options.ratings)
    status = client.status()
    minutes = (time.monotonic() - started) / 60
    print(table(status))
    print(f"Seed {options.seed}: {minutes:.1f} minutes.")
    path = options.plot or Path(f"demo-seed{options.seed}.png")
    save_plot(status, path)
    print(f"Plot: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
