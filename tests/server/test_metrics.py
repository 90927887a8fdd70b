"""What is counted, on a real server and by hand."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from server.metrics import LATENCY_BUCKETS, Metrics, TokenHistogram
from tests.server.conftest import Site, eventually

HISTOGRAMS = (
    "time_to_first_token_seconds",
    "inter_token_latency_seconds",
    "e2e_request_latency_seconds",
    "request_queue_time_seconds",
    "request_prefill_time_seconds",
    "request_decode_time_seconds",
    "request_prompt_tokens",
    "request_generation_tokens",
    "feedback_version_lag",
)
SERIES = (
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "prompt_tokens_total",
    "generation_tokens_total",
    'request_aborted_total{cause="client_gone"}',
    'request_aborted_total{cause="stalled"}',
    'admission_rejections_total{reason="queue_full"}',
    "policy_version",
    'policy_swaps_total{result="done"}',
    *(f'policy_swap_phase_seconds_count{{phase="{phase}"}}' for phase in ("verify", "load", "probe", "flip", "drain")),
    "policy_swap_stall_seconds",
    'inflight_requests{slot="active"}',
    'inflight_requests{slot="draining"}',
    "policy_age_seconds",
    "event_loop_tasks",
    "process_threads",
)
WAITED = 0.2


def test_every_series_is_there_before_its_first_event(site: Site) -> None:
    names = {line.rpartition(" ")[0] for line in site.http.get("/metrics").text.splitlines()}
    assert set(SERIES) <= names
    assert {f"{name}_count" for name in HISTOGRAMS} <= names


def test_an_answer_is_counted_once_in_each_of_its_times(site: Site) -> None:
    times = ("request_queue_time", "request_prefill_time", "time_to_first_token", "request_decode_time")

    def read() -> dict[str, float]:
        return {f"{name}_{part}": site.metric(f"{name}_seconds_{part}") for name in times for part in ("count", "sum")}

    before, tokens = read(), site.metric("generation_tokens_total")
    gaps = site.metric("inter_token_latency_seconds_count")
    response = site.chat(ignore_eos=True, max_tokens=20)
    assert response.json()["usage"]["completion_tokens"] == 20
    more = {name: value - before[name] for name, value in read().items()}
    assert {name: more[f"{name}_count"] for name in times} == dict.fromkeys(times, 1.0)
    # The wait for the first token is the wait in the queue and the reading of the prompt.
    parts = more["request_queue_time_sum"] + more["request_prefill_time_sum"]
    assert math.isclose(parts, more["time_to_first_token_sum"], rel_tol=1e-6)
    assert more["request_decode_time_sum"] > 0
    assert site.metric("generation_tokens_total") == tokens + 20
    assert site.metric("inter_token_latency_seconds_count") == gaps + 19


def test_a_request_without_a_slot_spends_its_time_in_the_queue(narrow_site: Site) -> None:
    queued = narrow_site.metric("request_queue_time_seconds_sum")
    body = {"messages": [{"role": "user", "content": "hi"}], "ignore_eos": True, "max_tokens": 16000, "stream": True}
    with ThreadPoolExecutor(1) as asking:
        with narrow_site.http.stream("POST", "/v1/chat/completions", json=body) as first:
            frames = first.iter_bytes()
            next(frames)
            assert 0 < narrow_site.metric("kv_cache_usage_perc") <= 1
            second = asking.submit(narrow_site.chat, max_tokens=2)
            eventually(lambda: narrow_site.metric("num_requests_waiting") == 1.0)
            time.sleep(WAITED)
        assert second.result().status_code == 200
    assert narrow_site.metric("request_queue_time_seconds_sum") >= queued + WAITED
    eventually(lambda: narrow_site.metric("kv_cache_usage_perc") == 0.0)


def test_the_token_histogram_says_what_the_librarys_own_would() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    fast = TokenHistogram("wait_seconds", "What.", ours)
    slow = Histogram("wait_seconds", "What.", buckets=LATENCY_BUCKETS, registry=theirs)
    for seconds in (0.0, 0.005, 0.0051, 0.3, 59.0, 61.0):
        fast.observe(seconds)
        slow.observe(seconds)

    def lines(registry: CollectorRegistry) -> list[str]:
        return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]

    assert lines(ours) == lines(theirs)


@pytest.mark.parametrize(
    ("published", "judged", "lags"),
    [(7, (5,), 2.0), (7, (7, 6), 1.0), (3, (4,), 0.0)],
    ids=["two behind", "both sides of a comparison", "published here a moment later"],
)
def test_the_lag_of_feedback_is_counted_in_publications(published: int, judged: tuple[int, ...], lags: float) -> None:
    metrics = Metrics()
    metrics.published(published)
    metrics.judged("rating", *judged)
    assert metrics.registry.get_sample_value("feedback_version_lag_sum") == lags
    assert metrics.registry.get_sample_value("feedback_version_lag_count") == len(judged)
    assert metrics.registry.get_sample_value("feedback_total", {"kind": "rating"}) == 1.0


def test_a_rating_is_counted_with_the_lag_of_its_answer(site: Site) -> None:
    before = site.metric("feedback_version_lag_count")
    interaction_id = site.chat().headers["x-interaction-id"]
    site.http.put(f"/v1/interactions/{interaction_id}/rating", json={"value": "up"})
    assert site.metric("feedback_version_lag_count") == before + 1
