"""Traces without a server: their bounds, and what comes of damaged or missing contexts."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from asrserver.broker.replies import Entry
from asrserver.errors import SettingError
from asrserver.telemetry import gateway_traces, metrics, traces, worker_traces
from asrserver.telemetry.gateway_traces import SessionTrace
from asrserver.telemetry.worker_traces import Call, ResultTrace, WorkerTrace
from tests.collector import Collector, collecting
from tests.waiting import wait_until

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
HASH = {"trace": PARENT, "created": "1700000000.5"}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """Traces are on in this process, and this takes the spans."""
    monkeypatch.setattr(traces, "_export", None)
    monkeypatch.setattr(traces, "_known", {})
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
        yield collector
        traces.close()


def begun() -> SessionTrace:
    session = gateway_traces.start_session("s", mode="stream")
    assert session is not None
    return session


def claimed(sid: str = "s", fields: dict[str, str] = HASH, epoch: int = 1) -> WorkerTrace:
    work = worker_traces.claim_session(sid, fields, epoch)
    assert work is not None
    return work


def result(work: WorkerTrace, seq: int) -> ResultTrace:
    found = work.result("SegmentResult", seq, "")
    assert found is not None
    return found


def counted(outcome: str) -> float:
    return float(metrics.spans.labels(outcome)._value.get())


def test_nothing_is_noted_while_traces_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_export", None)
    assert gateway_traces.start_session("s") is None
    assert gateway_traces.resume_session("s", HASH) is None
    assert worker_traces.claim_session("s", HASH, 1) is None
    gateway_traces.result_stored("s", PARENT, 0.0)
    assert traces.trace_id("s") == ""


def test_later_results_of_a_long_session_are_traces_of_their_own(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trace has a bound, and still every result can be looked into: it links to its session."""
    monkeypatch.setattr(worker_traces, "MAX_RESULTS", 2)
    traces.configure("test", "1")
    work = claimed()
    for seq in range(1, 5):
        result(work, seq).end(True)
    traces.close()
    found = collector.named("result")
    assert [span.parent for span in found] == [PARENT[36:52]] * 2 + [""] * 2
    assert [span.links for span in found] == [[], [], [PARENT[36:52]], [PARENT[36:52]]]
    assert len({span.trace for span in found}) == 3
    assert all({"audio.queue", "result.publish"} <= {one.name for one in collector.below(span)} for span in found)


def test_owners_of_a_session_are_bounded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that reconnects all day, and a session that goes from worker to worker, make no endless trace; results
    are noted as before."""
    monkeypatch.setattr(traces, "MAX_OWNERS", 2)
    traces.configure("test", "1")
    for number in range(1, 5):
        session = gateway_traces.resume_session("s", HASH | {"moves": str(number)})
        assert session is not None
        session.delivered(PARENT, 0, 1.0)
        session.end("moved", 0, 0, 0)
        claimed(epoch=number)
    traces.close()
    assert len(collector.named("session")) == len(collector.named("session.claim")) == 2
    assert len(collector.named("result.deliver")) == 4


def test_the_cause_of_a_segment_is_the_piece_that_completed_it(collector: Collector) -> None:
    """Several pieces are processed in one go: not the last of them, but the one after which its end was known."""
    traces.configure("test", "1")
    work = claimed()
    entries = [Entry(f"{number + 1}-0", b"", None, 100.0 + number) for number in range(6)]
    work.read(2)
    work.read(5)
    for entry in entries:
        work.take(entry)
    work.fed(entries[:3], [10, 20, 30], 110.0, "s 3-0")
    work.fed(entries[3:], [40, 50, 60], 120.0, "s 3-0")  # in these, no segment ended
    work.segment("s 3-0", 15, Call(1.0, 2.0, 3.0))
    first = result(work, 1)
    first.end(True)
    work.segment("s 3-0", 99, None)
    result(work, 2).end(True)
    work.take(entries[5])
    result(work, 3).end(True)
    assert first.entry == 1
    traces.close()
    found = collector.named("result")
    assert [span.attributes["asr.chunk"] for span in found] == [1, 2, 5]
    assert [span.began for span in found] == [101.0, 102.0, 105.0]
    assert [span.attributes["asr.windows"] for span in collector.named("engine.run")] == [1]


def test_appends_far_back_are_forgotten(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    traces.configure("test", "1")
    session = begun()
    for index in range(gateway_traces.MAX_APPENDS + 10):
        session.appended(index, 1.0)
    for entry in (0, 20, 10_000):
        session.delivered(PARENT, entry, 1.0)
    session.end("done", 1, 2, 3)
    traces.close()
    assert len(collector.named("audio.append")) == 1
    assert len(collector.named("result.deliver")) == 3


@pytest.mark.parametrize("field", ["", "00-xyz", PARENT[:-3], f"{PARENT}-00", f"01{PARENT[2:]}"])
def test_a_session_of_a_release_without_traces_has_none(collector: Collector, field: str) -> None:
    """Or one whose field another program has damaged."""
    traces.configure("test", "1")
    assert worker_traces.claim_session("s", {"trace": field}, 1) is None
    assert gateway_traces.resume_session("s", {"trace": field}) is None
    assert worker_traces.claim_session("s", {}, 1) is None


def test_what_an_earlier_gateway_has_stored_is_not_noted_again(collector: Collector) -> None:
    """A gateway that takes a session over reads and stores all its events once more."""
    traces.configure("test", "1")
    session = begun()
    gateway_traces.result_stored("s", PARENT, session.opened - 1)
    gateway_traces.result_stored("s", PARENT, session.opened + 1)
    gateway_traces.result_stored("another", PARENT, session.opened + 1)
    session.end("moved", 0, 0, 0)
    gateway_traces.result_stored("s", PARENT, session.opened + 2)
    traces.close()
    (noted,) = collector.named("result.store")
    assert noted.ended >= noted.began


def test_the_queue_has_a_bound(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What does not fit is dropped and counted, and the log says so once; what fits is exported when it can be."""
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")
    monkeypatch.setattr("opentelemetry.sdk._shared_internal.BatchProcessor.worker", lambda _processor: None)
    traces.configure("test", "1")
    full, sent = counted("queue_full"), counted("sent")
    with caplog.at_level(logging.INFO):
        for _ in range(30):
            traces.add_span("session.start", PARENT, 1.0, 2.0, "INTERNAL", {})
        assert counted("queue_full") == full + 20
        assert traces._export is not None
        traces._export._provider.force_flush()
    assert counted("sent") == sent + 10
    assert len(collector.spans) == 10
    texts = [record.getMessage() for record in caplog.records]
    assert texts == [
        "spans of traces are dropped until the collector takes them: 10 wait (OTEL_BSP_MAX_QUEUE_SIZE)",
        "spans of traces are exported again, 20 were dropped",
    ]


def test_a_collector_that_refuses_and_comes_back(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    traces.configure("test", "1")
    collector.status = 400
    before = counted("not_sent")
    with caplog.at_level(logging.INFO):
        for number in range(1, 4):
            claimed(epoch=number)
            wait_until(lambda number=number: counted("not_sent") == before + number)
        collector.status = 200
        claimed(epoch=9)
        wait_until(lambda: len(collector.spans) == 1)
        wait_until(lambda: len(caplog.records) == 2)
    first, second = (record.getMessage() for record in caplog.records)
    assert first.startswith("spans of traces are dropped until the collector takes them: ")
    assert "400" in first
    assert second == "spans of traces are exported again, 3 were dropped"


def test_a_collector_on_this_machine_is_asked_directly(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by the proxy of the environment, which cannot reach it."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("no_proxy", "example.org")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    traces.configure("test", "1")
    claimed()
    wait_until(lambda: len(collector.spans) == 1)
    assert os.environ["no_proxy"].startswith("example.org,")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "many"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "5000"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
    ],
)
def test_a_variable_that_cannot_be_used_is_an_error(
    collector: Collector, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingError, match="OTEL_"):
        traces.configure("test", "1")


def test_the_standard_variables_name_the_service(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SERVICE_NAME", "speech")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=i-7,host.name=asr1")
    traces.configure("asrserver-worker", "worker-0")
    claimed()
    traces.close()
    (span,) = collector.spans
    assert span.resource["service.name"] == "speech"
    assert span.resource["service.instance.id"] == "i-7"
    assert span.resource["host.name"] == "asr1"
    assert span.resource["service.version"]


def test_the_sdk_can_be_disabled(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    traces.configure("test", "1")
    assert gateway_traces.start_session("s") is None
