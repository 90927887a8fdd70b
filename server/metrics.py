"""What the server counts. Labels are bounded: a slot, a result, a reason; never a version or a path.

Everything here belongs to the event loop's thread, which also answers /metrics: a scrape waits for nobody.
"""

from __future__ import annotations

import asyncio
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

LATENCY_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5.0, 10.0, 30.0, 60.0)
TOKEN_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
PHASE_BUCKETS = (0.001, 0.01, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0)
LAG_BUCKETS = (0, 1, 2, 3, 5, 8, 13)


class TokenHistogram(Collector):
    """A histogram for what happens at every token: without the locks and checks that the library's own take."""

    def __init__(self, name: str, what: str, registry: CollectorRegistry) -> None:
        self._name = name
        self._what = what
        self._counts = [0] * (len(LATENCY_BUCKETS) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, seconds: float) -> None:
        self._counts[bisect_left(LATENCY_BUCKETS, seconds)] += 1
        self._sum += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        bounds = [*map(str, LATENCY_BUCKETS), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._what, buckets=buckets, sum_value=self._sum)


class Metrics:
    """One registry per app, so tests can make many. Times are seconds on the monotonic clock."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

        def histogram(name: str, what: str, buckets: tuple[float, ...] = LATENCY_BUCKETS) -> Histogram:
            return Histogram(name, what, buckets=buckets, registry=registry)

        def counter(name: str, what: str, *labels: str) -> Counter:
            return Counter(name, what, labels, registry=registry)

        def gauge(name: str, what: str, *labels: str) -> Gauge:
            return Gauge(name, what, labels, registry=registry)

        self.time_to_first_token = histogram("time_to_first_token_seconds", "Submission to first token.")
        self.inter_token_latency = TokenHistogram(
            "inter_token_latency_seconds", "Between two tokens of one answer.", registry
        )
        self.e2e_request_latency = histogram("e2e_request_latency_seconds", "Submission to last token.")
        self.request_queue_time = histogram("request_queue_time_seconds", "Submission to first scheduled.")
        self.request_prefill_time = histogram("request_prefill_time_seconds", "First scheduled to first token.")
        self.request_decode_time = histogram("request_decode_time_seconds", "First to last token.")
        self.request_prompt_tokens = histogram("request_prompt_tokens", "Prompt length.", TOKEN_BUCKETS)
        self.request_generation_tokens = histogram("request_generation_tokens", "Answer length.", TOKEN_BUCKETS)
        self.prompt_tokens = counter("prompt_tokens", "Prompt tokens of requests that ended.")
        self.generation_tokens = counter("generation_tokens", "Tokens generated.")
        self.request_success = counter("request_success", "Answers that ended by themselves.", "finished_reason")
        self.request_aborted = counter("request_aborted", "Answers that were cut.", "cause")
        self.admission_rejections = counter("admission_rejections", "Requests not taken in.", "reason")
        self.num_requests_running = gauge("num_requests_running", "Sequences in the batch.")
        self.num_requests_waiting = gauge("num_requests_waiting", "Sequences without a slot.")
        self.kv_cache_usage = gauge("kv_cache_usage_perc", "Share of the KV cache's tokens in use, 0 to 1.")
        self.inflight_requests = gauge("inflight_requests", "Answers by the weight set that computes them.", "slot")
        self.policy_version = gauge("policy_version", "Policy version that new answers start on.")
        self.policy_age = gauge("policy_age_seconds", "Since that version was published.")
        self.policy_swaps = counter("policy_swaps", "Tries to follow the live pointer.", "result")
        self.policy_swap_phase = Histogram(
            "policy_swap_phase_seconds", "A swap's parts.", ["phase"], buckets=PHASE_BUCKETS, registry=registry
        )
        self.policy_swap_stall = gauge(
            "policy_swap_stall_seconds", "Largest gap between tokens from the start of the last swap to past its flip."
        )
        self.feedback = counter("feedback", "Judgements acknowledged.", "kind")
        self.feedback_version_lag = histogram(
            "feedback_version_lag", "Published version minus the judged answer's.", LAG_BUCKETS
        )
        gauge("event_loop_tasks", "Tasks of the event loop.").set_function(lambda: len(asyncio.all_tasks()))
        gauge("process_threads", "Python threads.").set_function(threading.active_count)
        ProcessCollector(registry=registry)
        self._published = 0
        self._show_zeros()

    def _show_zeros(self) -> None:
        """A series that appears with its first event cannot show that event as an increase."""
        for result in ("done", "failed"):
            self.policy_swaps.labels(result)
        for cause in ("client_gone", "stalled", "error", "draining"):
            self.request_aborted.labels(cause)
        for reason in ("queue_full", "draining"):
            self.admission_rejections.labels(reason)
        for phase in ("verify", "load", "probe", "flip", "drain"):
            self.policy_swap_phase.labels(phase)

    def began(self, queued: float, prefilling: float) -> None:
        """A first token: after `queued` seconds without a slot, then `prefilling` seconds with one."""
        self.time_to_first_token.observe(queued + prefilling)
        self.request_queue_time.observe(queued)
        self.request_prefill_time.observe(prefilling)

    def ended(self, prompt_tokens: int, tokens: int, seconds: float) -> None:
        self.prompt_tokens.inc(prompt_tokens)
        self.request_prompt_tokens.observe(prompt_tokens)
        self.request_generation_tokens.observe(tokens)
        self.e2e_request_latency.observe(seconds)

    def judged(self, kind: str, *policy_versions: int) -> None:
        """Feedback was acknowledged, on answers of these versions."""
        self.feedback.labels(kind).inc()
        for version in policy_versions:
            self.feedback_version_lag.observe(max(0, self._published - version))

    def published(self, policy_version: int) -> None:
        """The live pointer names this version, served or not."""
        self._published = policy_version

    def now_serving(self, policy_version: int, published_at: float) -> None:
        self.published(max(policy_version, self._published))
        self.policy_version.set(policy_version)
        self.policy_age.set_function(lambda: max(0.0, time.time() - published_at))
