"""Every metric of the system, for Prometheus; conf/ has a dashboard and alerts that use them.

The children of one supervisor (gateways that share a port, workers) write into files of one directory, named by their
slot; whoever is asked adds them up, so any gateway answers for all, and a child that is started again goes on where its
counters were. Without that directory (in tests) they are this process's own.

Names follow https://prometheus.io/docs/practices/naming/; no label has values that a client can make up.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from typing import Any

from asrserver.telemetry.multiprocess import DIRECTORY, SLOT, allocate

_slot = os.environ.get(SLOT, "")
_shared = DIRECTORY in os.environ and bool(_slot) and allocate(_slot)
if not _shared:
    os.environ.pop(DIRECTORY, None)  # prometheus_client looks at it when it is imported

from prometheus_client import (  # noqa: E402
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.multiprocess import MultiProcessCollector  # noqa: E402

if _shared:
    # By slot and not by pid, or every restart would leave three more files to be read at each scrape.
    values.ValueClass = values.MultiProcessValue(lambda: _slot)  # type: ignore[no-untyped-call]

disable_created_metrics()  # type: ignore[no-untyped-call]  # one more series each, that few ask for

REGISTRY = CollectorRegistry()

#: Seconds; from a millisecond in Redis to a minute of backlog.
_LATENCIES = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


def _counter(name: str, what: str, *labels: str) -> Counter:
    return Counter(f"asrserver_{name}", what, labels, registry=REGISTRY)


def _histogram(name: str, what: str, buckets: tuple[float, ...] = _LATENCIES) -> Histogram:
    return Histogram(f"asrserver_{name}", what, buckets=buckets, registry=REGISTRY)


def _gauge(name: str, what: str, *labels: str, mode: Any = "livesum") -> Gauge:
    return Gauge(f"asrserver_{name}", what, labels, multiprocess_mode=mode, registry=REGISTRY)


# -- gateways

connections = _gauge("connections", "WebSocket connections that are open.")
connections_opened = _counter("connections_opened", "WebSocket connections opened.")
sessions = _gauge("sessions", "Sessions that are open in gateways.")
sessions_started = _counter("sessions_started", "Sessions started.")
sessions_ended = _counter("sessions_ended", "Sessions that left their gateway, by how.", "status")
chunks = _counter("chunks", "Chunks that Redis has.")
received_bytes = _counter("received_bytes", "Bytes of audio that Redis has.")
audio_seconds = _counter("audio_seconds", "Seconds of audio of which results were delivered.")
refusals = _counter("refusals", "Requests, messages and chunks that were refused, by error code.", "code")
requests = _counter("http_requests", "REST requests answered, by status.", "status")
enqueue_seconds = _histogram("enqueue_seconds", "From a chunk's receipt until Redis has it.")
answer_seconds = _histogram("answer_seconds", "From a chunk's receipt until its result is with its gateway.")
publish_seconds = _histogram("publish_seconds", "From a result's making in the worker until its gateway sent it on.")
persist_seconds = _histogram("persist_seconds", "From a result's making in the worker until PostgreSQL has it.")
persist_batch_seconds = _histogram("persist_batch_seconds", "Storing one batch of sessions in PostgreSQL.")
unstored_sessions = _gauge("unstored_sessions", "Sessions with results that PostgreSQL has not.")
persist_lag = _gauge("persist_lag_seconds", "How long the oldest of them has waited.", mode="livemax")
backlog = _gauge(
    "backlog_seconds", "Seconds of audio that were received and have no result yet; of a live stream, beyond 4 s."
)
oldest_waiting = _gauge("oldest_waiting_seconds", "How long the oldest chunk without a result waits.", mode="livemax")
redis_fullness = _gauge("redis_memory_ratio", "Redis's used memory over its maxmemory.", mode="livemostrecent")
queue = _gauge(
    "queue_sessions", "Sessions in asr_tasks, of all machines: waiting, processing.", "state", mode="livemostrecent"
)
dead_letters = _gauge("buried_audio", "Entries of asr_dead, of all machines.", mode="livemostrecent")
recordings_lost = _counter("recordings_lost", "Recordings given up, by reason.", "reason")

# -- workers

worker_sessions = _gauge("worker_sessions", "Sessions that workers own.")
worker_backlog = _gauge("worker_backlog_seconds", "Seconds of audio read by workers and not yet recognised.")
queue_seconds = _histogram("queue_seconds", "What a window of speech waits for the engine.")
decode_seconds = _histogram("decode_seconds", "One call of the model.")
batch_size = _histogram("batch_size", "Windows in one call of the model.", (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64))
busy_seconds = _counter("engine_busy_seconds", "Seconds that the model was at work.")
speech_seconds = _counter("engine_speech_seconds", "Seconds of speech that it recognised; busy over speech is the RTF.")
real_time_factor = _gauge(
    "real_time_factor", "Seconds of work a second of speech, lately; the slowest worker's.", mode="livemax"
)

# -- the supervisor

restarts = _counter("restarts", "Children that died and were started again, by kind.", "kind")
children = _gauge("children", "Children that are ready, by kind.", "kind")

_CODES: set[str] = set()
_MANY = 100


def count_refusal(code: str) -> None:
    """Count a refusal. Codes are constants of the code, but an event may come from another version of it."""
    if code not in _CODES and len(_CODES) >= _MANY:
        code = "other"
    _CODES.add(code)
    refusals.labels(code).inc()


class BufferedCounter:
    """A counter on the path of every chunk: a number of this process, shared at every heartbeat."""

    __slots__ = ("_counter", "value")

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self.value = 0.0

    def flush(self) -> None:
        value, self.value = self.value, 0.0
        if value > 0:
            self._counter.inc(value)


class BufferedHistogram:
    """A histogram on the path of every chunk, likewise: shared between processes, one observation takes 13 µs."""

    __slots__ = ("_bounds", "_counts", "_histogram", "_total")

    def __init__(self, histogram: Histogram) -> None:
        self._histogram = histogram
        self._bounds = histogram._upper_bounds
        self._counts = [0] * len(self._bounds)
        self._total = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._total += value * times

    def flush(self) -> None:
        # As Histogram.observe does of prometheus_client 0.21 to 0.26, many at once.
        for bucket, count in zip(self._histogram._buckets, self._counts, strict=True):
            if count:
                bucket.inc(count)
        self._histogram._sum.inc(self._total)
        self._counts, self._total = [0] * len(self._bounds), 0.0


class EngineMetrics:
    """The calls of the model, counted in the loop and shared at every heartbeat: a short call would notice it else."""

    def __init__(self) -> None:
        self._took = BufferedHistogram(decode_seconds)
        self._rows = BufferedHistogram(batch_size)
        self._waited = BufferedHistogram(queue_seconds)
        self._busy = BufferedCounter(busy_seconds)
        self._speech = BufferedCounter(speech_seconds)

    def record(self, took: float, waited: list[float], speech: float) -> None:
        """A call that took so many seconds, of rows that had waited so long, with so much speech."""
        self._took.observe(took)
        self._rows.observe(len(waited))
        for seconds in waited:
            self._waited.observe(seconds)
        self._busy.value += took
        self._speech.value += speech

    def flush(self) -> None:
        for metric in (self._took, self._rows, self._waited, self._busy, self._speech):
            metric.flush()


# -- for those who ask -----------------------------------------------------------------------------------------------


def exposition() -> bytes:
    """All metrics in Prometheus's text format. Reads files: for a thread."""
    if not _shared:
        return generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, os.environ[DIRECTORY])  # type: ignore[no-untyped-call]
    return generate_latest(registry)
