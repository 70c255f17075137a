"""Every metric of the system, for Prometheus; conf/ has a dashboard and alerts that use them.

The children of one supervisor (gateways that share a port, and workers) write into files of one shared directory, named
by their slot. Whichever process is scraped adds the files up, so any gateway answers for all of them, and a child that
is restarted continues its counters. Without that directory (in tests) the metrics are those of this process alone.

Names follow https://prometheus.io/docs/practices/naming/; no label takes values that a client can choose.
"""

from __future__ import annotations

import os
import platform
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any

from asrserver import __version__
from asrserver.telemetry.multiprocess import DIRECTORY, SLOT, allocate, child_counts

_slot = os.environ.get(SLOT, "")
_shared = DIRECTORY in os.environ and bool(_slot) and allocate(_slot)
if not _shared:
    os.environ.pop(DIRECTORY, None)  # prometheus_client reads it at import

from prometheus_client import (  # noqa: E402
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric  # noqa: E402
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402
from prometheus_client.registry import Collector  # noqa: E402

if _shared:
    # By slot and not by process id: every restart would leave three more files that each scrape reads.
    values.ValueClass = values.MultiProcessValue(lambda: _slot)

disable_created_metrics()  # one more series for each counter, which few use

REGISTRY = CollectorRegistry()

#: The format of `exposition`.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

#: Buckets in seconds: from a millisecond in Redis to a minute of backlog.
_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def _counter(name: str, what: str, *labels: str) -> Counter:
    return Counter(f"asrserver_{name}", what, labels, registry=REGISTRY)


def _histogram(name: str, what: str, buckets: tuple[float, ...] = _LATENCIES) -> Histogram:
    return Histogram(f"asrserver_{name}", what, buckets=buckets, registry=REGISTRY)


def _gauge(name: str, what: str, *labels: str, mode: Any = "livesum") -> Gauge:
    return Gauge(f"asrserver_{name}", what, labels, multiprocess_mode=mode, registry=REGISTRY)


# -- gateways

connections = _gauge("connections", "Open WebSocket connections.")
connections_opened = _counter("connections_opened", "WebSocket connections opened.")
sessions = _gauge("sessions", "Open sessions of gateways.")
sessions_started = _counter("sessions_started", "Sessions started.")
sessions_ended = _counter("sessions_ended", "Sessions that left their gateway, by their last status.", "status")
chunks = _counter("chunks", "Chunks stored in Redis.")
duplicate_chunks = _counter("duplicate_chunks", "Chunks that came again: copies are acknowledged and dropped.")
received_bytes = _counter("received_bytes", "Bytes of audio stored in Redis.")
audio_seconds = _counter("audio_seconds", "Seconds of audio whose results were delivered.")
refusals = _counter("refusals", "Refused requests, messages and chunks, by error code.", "code")
requests = _counter("http_requests", "Answered REST requests, by HTTP status.", "status")
enqueue_seconds = _histogram("enqueue_seconds", "Time from the receipt of a chunk until Redis has it.")
answer_seconds = _histogram("answer_seconds", "Time from the receipt of a chunk until its gateway has the result.")
publish_seconds = _histogram(
    "publish_seconds", "Time from the creation of a result in a worker until its gateway sends it."
)
persist_seconds = _histogram(
    "persist_seconds", "Time from the creation of a result in a worker until PostgreSQL has it."
)
persist_batch_seconds = _histogram("persist_batch_seconds", "Time to store one batch of sessions in PostgreSQL.")
unstored_sessions = _gauge("unstored_sessions", "Sessions with results that are not in PostgreSQL yet.")
persist_lag = _gauge("persist_lag_seconds", "How long the oldest unstored session has waited.", mode="livemax")
backlog = _gauge(
    "backlog_seconds", "Seconds of received audio that have no result yet; of a live stream, only those beyond 4 s."
)
oldest_waiting = _gauge("oldest_waiting_seconds", "Age of the oldest chunk without a result.", mode="livemax")
shedding = _gauge(
    "shedding_step",
    "What is shed because audio waits: 0 nothing; 1 audio faster than real time waits; 2 keys of low priority start no "
    "session; 3 keys that have their share start none.",
    mode="livemax",
)
redis_fullness = _gauge(
    "redis_memory_ratio", "Used memory of Redis over its maxmemory; of several, of the fullest.", mode="livemostrecent"
)
shard_up = _gauge("shard_up", "Whether one of several Redis servers answers.", "redis", mode="livemostrecent")
shard_sessions = _gauge(
    "shard_sessions",
    "Sessions in one of several Redis servers, with and without a worker.",
    "redis",
    mode="livemostrecent",
)
shard_fullness = _gauge(
    "shard_memory_ratio",
    "Used memory of one of several Redis servers over its maxmemory.",
    "redis",
    mode="livemostrecent",
)
queue = _gauge(
    "queue_sessions", "Sessions in asr_tasks, of all machines: waiting, processing.", "state", mode="livemostrecent"
)
dead_letters = _gauge("buried_audio", "Entries of asr_dead, of all machines.", mode="livemostrecent")
recordings_lost = _counter("recordings_lost", "Recordings that were given up, by reason.", "reason")

# -- workers

worker_sessions = _gauge("worker_sessions", "Sessions owned by workers.")
worker_backlog = _gauge("worker_backlog_seconds", "Seconds of audio that workers have read and not yet recognised.")
partial_interval = _gauge(
    "partial_interval_seconds", "Time between two partial results of a segment, of the slowest worker.", mode="livemax"
)
drained_workers = _gauge("drained_workers", "Workers that claim no sessions because they are drained.")
model_info = _gauge("model_info", "Workers that have a model loaded.", "model", "device", "compute_type")
queue_seconds = _histogram("queue_seconds", "Time that a window of speech waits for the engine.")
decode_seconds = _histogram("decode_seconds", "Duration of one call of the model.")
batch_size = _histogram("batch_size", "Windows in one call of the model.", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64))
busy_seconds = _counter("engine_busy_seconds", "Seconds during which the model computed.")
wasted_seconds = _counter(
    "wasted_decode_seconds",
    "Seconds of engine_busy_seconds for nothing: retries, and decodings of segments that went on or were dropped.",
)
speech_seconds = _counter(
    "engine_speech_seconds", "Seconds of recognised speech; engine_busy_seconds over this is the real-time factor."
)
real_time_factor = _gauge(
    "real_time_factor", "Recent seconds of work for a second of speech, of the slowest worker.", mode="livemax"
)

# -- every process

build_info = _gauge("build_info", "1, for the version of the program.", "version", "python", mode="livemax")
build_info.labels(__version__, platform.python_version()).set(1)
spans = _counter(
    "spans", "Spans of traces, by what became of them: sent, not_sent (no collector took them), queue_full.", "outcome"
)

# -- the supervisor

restarts = _counter("restarts", "Children that died and were restarted, by kind.", "kind")
children = _gauge("children", "Children that are ready, by kind.", "kind")

#: The error codes that were counted, and the most that are counted under their own name.
_codes: set[str] = set()
MAX_CODES = 100


def count_refusal(code: str) -> None:
    """Count a refusal. Codes are constants, but an event may come from another version of the code: their number is
    bounded, and further ones count as `other`."""
    if code not in _codes and len(_codes) >= MAX_CODES:
        code = "other"
    _codes.add(code)
    refusals.labels(code).inc()


class BufferedCounter:
    """A counter on the path of every chunk: a number of this process, which `flush` adds to the shared counter.

    Attributes:
        value: What was counted since the last flush.
    """

    __slots__ = ("_counter", "value")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self.value = 0.0

    def flush(self) -> None:
        """Add the value to the shared counter."""
        value, self.value = self.value, 0.0
        if value > 0:
            self._counter.inc(value)


class BufferedHistogram:
    """A histogram on the path of every chunk, which `flush` adds to the shared one: to that, one observation takes
    13 µs."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_total")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._bounds = histogram._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `times` observations of `value`."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def flush(self) -> None:
        """Add all observations to the shared histogram."""
        # As Histogram.observe of prometheus_client 0.26 does, for many observations at once.
        for bucket, count in zip(self._histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._total)
        self._counts, self._total = [0] * len(self._bounds), 0.0


class EngineMetrics:
    """Counts the calls of the model; the shared metrics get them at every heartbeat. Updating those at each call would
    be a notable part of a short call."""

    def __init__(self) -> None:
        self._took = BufferedHistogram(decode_seconds)
        self._rows = BufferedHistogram(batch_size)
        self._waited = BufferedHistogram(queue_seconds)
        self._busy = BufferedCounter(busy_seconds)
        self._speech = BufferedCounter(speech_seconds)
        self._wasted = BufferedCounter(wasted_seconds)

    def count_waste(self, seconds: float) -> None:
        """Count seconds of calls whose result is not used."""
        self._wasted.value += seconds

    def record(self, took: float, waited: list[float], speech: float) -> None:
        """Count one call of the model.

        Args:
            took: Seconds that the call took.
            waited: Seconds that each row of the call had waited.
            speech: Seconds of speech in all rows together.
        """
        self._took.observe(took)
        self._rows.observe(len(waited))
        for seconds in waited:
            self._waited.observe(seconds)
        self._busy.value += took
        self._speech.value += speech

    def flush(self) -> None:
        """Add what was counted to the shared metrics."""
        for metric in (self._took, self._rows, self._waited, self._busy, self._speech, self._wasted):
            metric.flush()


class _ChildCollector(Collector):
    """What the supervisor wrote into its file, under the names of `restarts` and `children`."""

    def collect(self) -> Iterator[Metric]:
        found = child_counts()
        for key, family in (
            ("restarts", CounterMetricFamily(restarts._name, restarts._documentation, labels=("kind",))),
            ("children", GaugeMetricFamily(children._name, children._documentation, labels=("kind",))),
        ):
            for kind, number in found.get(key, {}).items():
                family.add_metric((kind,), number)
            yield family


def of_all_processes() -> CollectorRegistry:
    """The metrics of all processes that share the directory."""
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[DIRECTORY])
    registry.register(_ChildCollector())
    return registry


def exposition() -> bytes:
    """Return all metrics in Prometheus's text format. It reads files: call it in a thread."""
    return generate_latest(of_all_processes() if _shared else REGISTRY)
