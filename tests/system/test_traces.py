"""OpenTelemetry traces of the whole program, at a real receiver of OTLP."""

from __future__ import annotations

import asyncio
import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import HTTPRequest
from tornado.websocket import websocket_connect

from tests.collector import Collector, Span, collecting
from tests.program import System, alive, cli, free_port
from tests.recordings import Utterance
from tests.system.support import Start, robust
from tests.waiting import until
from tests.ws_client import WsClient, finish

pytestmark = pytest.mark.gen_test(timeout=120)

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{CALLER}-01"

#: Bytes of a piece of PCM: a tenth of a second.
PIECE = 3200

#: What is below a result of a live stream, and in which process.
STAGES = {
    "audio.append": "asrserver-gateway",
    "audio.queue": "asrserver-worker",
    "audio.decode": "asrserver-worker",
    "engine.wait": "asrserver-worker",
    "engine.run": "asrserver-worker",
    "result.publish": "asrserver-worker",
    "result.deliver": "asrserver-gateway",
    "result.store": "asrserver-gateway",
}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


def traced(start: Start, endpoint: str, *arguments: str, **variables: str) -> System:
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50", **variables}
    return start("run", "--workers", "1", "--traces", "on", *arguments, env=env).wait_ready()


async def connected(system: System, traceparent: str = TRACEPARENT) -> WsClient:
    return WsClient(await websocket_connect(HTTPRequest(system.url, headers={"traceparent": traceparent})))


async def say(ws: WsClient, sid: str, first: int, spoken: Utterance) -> int:
    """Send an utterance, and the silence that ends it, in pieces; return the next index."""
    pcm = spoken.pcm + bytes(32000)
    for at in range(0, len(pcm), PIECE):
        await ws.chunk(sid, first, pcm[at : at + PIECE])
        first += 1
    return first


async def dictate(ws: WsClient, sid: str, spoken: list[Utterance]) -> dict[str, Any]:
    """A live session: each utterance is sent when the one before has its text."""
    await ws.start(sid, mode="stream", format="pcm_s16le", language="en")
    at = 0
    for number, one in enumerate(spoken):
        at = await say(ws, sid, at, one)
        await until(lambda count=number + 1: len(ws.of(sid, "segment_result")) == count, 60)
    await ws.send(finish(sid))
    return await ws.find(sid, "final_result")


def check_stages(collector: Collector, result: Span) -> None:
    """Everything that happened to a result is below it, in the right process and order."""
    below = {span.name: span for span in collector.below(result)}
    assert {name: span.service for name, span in below.items() if name != "audio.inbox"} == STAGES
    assert all(span.trace == result.trace for span in below.values())
    assert below["audio.append"].began == pytest.approx(result.began, abs=0.02)
    assert below["audio.queue"].began == result.began
    assert below["audio.append"].ended <= below["audio.queue"].ended + 0.01
    assert below["audio.queue"].ended <= below["audio.decode"].began <= below["audio.decode"].ended
    assert below["engine.wait"].ended == below["engine.run"].began <= below["engine.run"].ended
    assert below["engine.run"].ended <= below["result.publish"].began <= below["result.publish"].ended <= result.ended
    assert below["result.deliver"].ended <= below["result.store"].ended


async def test_a_session_is_one_trace(start: Start, collector: Collector, utterances: list[Utterance]) -> None:
    """From the client's own span down to the rows, of both processes; and log lines name it."""
    system = traced(
        start, collector.url, "--log-format", "json", OTEL_RESOURCE_ATTRIBUTES="deployment.environment=test"
    )
    said = robust(utterances, 2)
    ws = await connected(system)
    assert (await dictate(ws, "s", said))["text"] == " ".join(one.text for one in said)
    await ws.close()
    assert await asyncio.to_thread(system.stop) == 0

    assert {span.trace for span in collector.spans} == {TRACE}
    (session,) = collector.named("session")
    assert session.parent == CALLER
    assert session.attributes == {
        "session.id": "s",
        "asr.mode": "stream",
        "asr.key": "",
        "asr.status": "done",
        "asr.chunks": session.attributes["asr.chunks"],
        "asr.bytes": sum(len(one.pcm) + 32000 for one in said),
        "asr.results": 3,
    }
    (started,), (claim,) = collector.named("session.start"), collector.named("session.claim")
    assert started.parent == claim.parent == session.id
    results = [span for span in collector.named("result") if span.attributes["asr.result"] == "SegmentResult"]
    assert [span.attributes["asr.seq"] for span in results] == [1, 2]
    for result in results:
        assert result.parent == session.id
        check_stages(collector, result)
    (final,) = [span for span in collector.named("result") if span.attributes["asr.result"] == "Final"]
    assert {"result.publish", "result.deliver", "result.store"} < {span.name for span in collector.below(final)}
    instances = {(span.service, span.resource["service.instance.id"]) for span in collector.spans}
    assert len(instances) == 2, "one process of each kind"
    assert {span.resource["deployment.environment"] for span in collector.spans} == {"test"}
    exported = repr(collector.spans)
    assert not any(word in exported for one in said for word in re.findall(r"\w{6,}", one.text))
    lines = [json.loads(line) for line in system.output().splitlines() if line.startswith("{")]
    about = [line for line in lines if line.get("session") == "s"]
    assert {line["logger"] for line in about} >= {"asrserver.sessions", "asrserver.consumer"}
    assert {line.get("trace_id") for line in about} == {TRACE}


async def test_a_takeover_stays_in_the_trace(start: Start, collector: Collector, utterances: list[Utterance]) -> None:
    """Each worker that had the session is in its trace, and so are the results of both."""
    system = traced(start, collector.url)
    said = robust(utterances, 2)
    ws = await connected(system)
    await ws.start("s", mode="stream", format="pcm_s16le", language="en")
    at = await say(ws, "s", 0, said[0])
    await until(lambda: ws.of("s", "segment_result"), 60)
    await until(lambda: collector.named("result"), 60, "the spans of the first worker, of which this ends last")
    (worker,) = system.children("worker")
    worker.kill()
    await until(lambda: not alive(worker))
    await say(ws, "s", at, said[1])
    await ws.send(finish("s"))
    assert (await ws.find("s", "final_result"))["text"] == " ".join(one.text for one in said)
    await ws.close()
    assert await asyncio.to_thread(system.stop) == 0

    assert {span.trace for span in collector.spans} == {TRACE}
    (session,) = collector.named("session")
    claims = collector.named("session.claim")
    assert [span.attributes["asr.epoch"] for span in claims] == [1, 2]
    assert len({span.resource["process.pid"] for span in claims}) == 2
    results = [span for span in collector.named("result") if span.attributes["asr.result"] == "SegmentResult"]
    assert [(span.attributes["asr.seq"], span.attributes["asr.epoch"]) for span in results] == [(1, 1), (2, 2)]
    assert {span.parent for span in (*claims, *results)} == {session.id}
    for result in results:
        check_stages(collector, result)


async def test_a_request_is_in_the_trace_of_its_caller(
    start: Start, collector: Collector, utterances: list[Utterance]
) -> None:
    """A file over HTTP. Without the header, or a valid one, it has a trace of its own; what the caller does not sample
    is not exported."""
    system = traced(start, collector.url)

    def transcribe(headers: dict[str, str]) -> None:
        url = f"http://127.0.0.1:{system.port}/api/v1/transcribe"
        request = urllib.request.Request(url, utterances[0].wav, headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            assert response.status == 200

    unsampled, malformed = f"00-{TRACE}-{CALLER}-00", f"00-{'0' * 32}-{CALLER}-01"
    for traceparent in (unsampled, TRACEPARENT, malformed, ""):
        await asyncio.to_thread(transcribe, {"traceparent": traceparent} if traceparent else {})
    assert await asyncio.to_thread(system.stop) == 0
    sessions = collector.named("session")
    assert [span.parent for span in sessions] == [CALLER, "", ""]
    assert len({span.trace for span in sessions}) == 3
    for session in sessions:
        results = [span for span in collector.below(session) if span.name == "result"]
        assert results
        assert all("engine.run" in {one.name for one in collector.below(span)} for span in results[:1])


async def test_a_server_without_its_collector_goes_on(start: Start, utterances: list[Utterance]) -> None:
    """What cannot be exported is dropped, counted, and said once by each process."""
    system = traced(start, f"http://127.0.0.1:{free_port()}", OTEL_EXPORTER_OTLP_TIMEOUT="1")
    said = robust(utterances, 2)

    def dropped() -> float:
        with urllib.request.urlopen(f"http://127.0.0.1:{system.port}/metrics", timeout=10) as response:
            counts = re.findall(r'^asrserver_spans_total\{outcome="(\w+)"\} (\S+)$', response.read().decode(), re.M)
        assert all(outcome == "not_sent" for outcome, _ in counts)
        return sum(float(count) for _, count in counts)

    async with await WsClient.open(system.url) as ws:
        for number in range(3):
            assert (await dictate(ws, f"s{number}", said))["text"] == " ".join(one.text for one in said)
    for _ in range(2):  # a second batch of each process, of which the log says nothing
        before = dropped()
        async with await WsClient.open(system.url) as ws:
            await dictate(ws, f"after-{before}", said)
        await until(lambda before=before: dropped() > before + 20, 30)
    assert await asyncio.to_thread(system.stop) == 0
    about = [line for line in system.output().splitlines() if "traces" in line or "opentelemetry" in line]
    assert len(about) == 2, about
    assert all("spans of traces are dropped until the collector takes them" in line for line in about)
    assert "Traceback" not in system.output()


def test_without_the_extra_the_program_says_so(processes: None, tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Without:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] == 'opentelemetry':\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Without())\n"
    )
    done = cli("run", "--traces", "on", env={"PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "--traces on needs OpenTelemetry's SDK and exporter: pip install 'asrserver[otel]'" in done.stderr


def test_a_variable_that_cannot_be_used_is_named(start: Start) -> None:
    system = start("run", "--traces", "on", env={"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"})
    assert system.process.wait(60) == 3
    assert "OTEL_EXPORTER_OTLP_PROTOCOL=grpc: spans are exported as http/protobuf only" in system.output()
