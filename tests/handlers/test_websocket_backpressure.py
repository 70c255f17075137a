"""Connections that do not read, that flood, or whose reading is paused: the cost of a WebSocket, and who bears it."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
import time

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import IOStream
from tornado.websocket import websocket_connect

from asrserver.auth.access import Access
from asrserver.gateway.gateway import Gateway
from asrserver.handlers import connection, flow_control
from asrserver.handlers.app import AsrApplication
from asrserver.protocol.events import Refusal
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO, only_socket
from tests.waiting import until
from tests.ws_client import WsClient, chunk, errors, finish, next_text, raw, said, start

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.mark.parametrize(
    ("origin", "allowed", "status"),
    [
        (None, "", 101),
        ("http://{host}", "", 101),
        ("http://elsewhere.example", "", 403),
        ("http://elsewhere.example", "http://other.example, http://elsewhere.example", 101),
        ("http://elsewhere.example", "*", 101),
        ("http://elsewhere.example.evil", "http://elsewhere.example", 403),
        ("null", "", 403),
    ],
)
async def test_which_pages_may_connect(
    url: str, gateway: Gateway, origin: str | None, allowed: str, status: int
) -> None:
    gateway.access = Access(origins=allowed)
    headers = {} if origin is None else {"Origin": origin.format(host=url.split("/")[2])}
    request = HTTPRequest(url, headers=headers)
    if status == 101:
        connection = await websocket_connect(request)
        connection.close()
        assert await connection.read_message() is None
    else:
        with pytest.raises(HTTPClientError, match=str(status)):
            await websocket_connect(request)


async def test_a_client_that_never_reads_is_cut_and_costs_nobody_else(
    url: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may use MAX_UNREAD bytes of memory; then it is cut off, and its session waits for it and ends."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    monkeypatch.setattr(connection, "MAX_UNREAD", 1 << 16)
    stream = await raw(url)
    await stream.write(said(start("deaf")))
    await until(lambda: "deaf" in gateway.sessions)
    session = gateway.sessions["deaf"]
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        for _ in range(2000):  # far more than the kernel's buffers take
            if session.send is None:
                break
            session.send(Refusal(code="c", message="x" * 16384))
            await asyncio.sleep(0)
        await until(lambda: session.send is None)
        await worker.take("deaf", "s")
        assert await worker.ended("deaf") == "interrupted"
        await ws.chunk("s", 0, AUDIO)
        await worker.chunk("s", 0)
        await ws.find("s", "chunk_result")
        assert gateway.connections == 1
    stream.close()


async def test_a_client_that_does_not_read_is_not_read(
    url: str, app: AsrApplication, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While an answer waits nothing is read; a client that reads in time misses nothing, another one is cut off."""
    monkeypatch.setattr(connection, "MAX_UNREAD", 1 << 14)
    monkeypatch.setattr(flow_control, "REFUSALS_PER_SECOND", 1e9)
    flood = said({"action": "\U0010ffff" * 50}) * 500  # of more answers than the kernel's buffers hold

    async def deaf() -> tuple[IOStream, asyncio.Future[None]]:
        stream = await raw(url)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        handler = only_socket(app)
        sending = asyncio.ensure_future(stream.write(flood))
        await until(lambda: handler._frames.blocked)
        taken = handler.messages
        async with await WsClient.open(url) as ws:
            for _ in range(10):
                await ws.send({"action": "x"})
                await ws.next()
        assert handler.messages == taken < 500
        return stream, sending

    stream, sending = await deaf()
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for _ in range(500):
        assert json.loads(await next_text(stream))["code"] == "unknown_action"
    await sending
    stream.close()
    await until(lambda: not gateway.connections)
    object.__setattr__(gateway.settings, "unread_timeout", 0.5)
    stream, sending = await deaf()
    await until(lambda: not gateway.connections)
    assert "does not read: cut" in caplog.text
    stream.close()
    await asyncio.wait([sending])


async def test_a_flood_waits_for_its_turns(url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another client's message is handled before all messages that arrived earlier."""
    taken: list[str] = []
    monkeypatch.setattr(gateway, "refused", lambda error, *_: taken.append(error.code))
    flood, other = await raw(url), await raw(url)
    # Past the loop, so that both are there when it looks again.
    flood.socket.send(said({"action": "x"}) * 190)
    other.socket.send(said({"action": "finish"}))
    await until(lambda: len(taken) == 191)
    assert taken.index("no_session") < 50
    flood.close()
    other.close()


def test_refusals_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """One second's worth at once, then at that rate; unused time gives no credit beyond it."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    throttle = flow_control.RefusalThrottle()
    for _ in range(2):
        for _ in range(flow_control.REFUSALS_PER_SECOND):
            throttle.record_refusal()
        assert throttle.debt == pytest.approx(0, abs=1e-6)
        for _ in range(10):
            throttle.record_refusal()
        assert throttle.debt == pytest.approx(10 / flow_control.REFUSALS_PER_SECOND)
        now[0] += 10 / flow_control.REFUSALS_PER_SECOND
        assert throttle.debt == pytest.approx(0, abs=1e-6)
        throttle.record_refusal()
        assert throttle.debt == pytest.approx(1 / flow_control.REFUSALS_PER_SECOND)
        now[0] += 3600


async def test_pings_are_answered_while_a_start_waits(
    url: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Messages behind the start are handled in order afterwards."""
    monkeypatch.setattr(gateway.room, "fullness", 0.85)
    stream = await raw(url)
    await stream.write(said(start("s")) + said(chunk("s", 0, AUDIO)) + said(finish()))
    await stream.write(struct.pack("!BB4x", 0x89, 0x80 | 4) + b"ping")
    assert await asyncio.wait_for(stream.read_bytes(6), 5) == b"\x8a\x04ping"
    monkeypatch.setattr(gateway.room, "fullness", 0.0)
    await worker.take("s")
    assert await worker.audio("s", 1) == {"1-0": AUDIO}
    assert await worker.ended("s") == "done"
    stream.close()


async def test_what_waits_behind_a_start_is_bounded(
    url: str, app: AsrApplication, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above MAX_QUEUED_BYTES the socket is not read; nothing is lost."""
    monkeypatch.setattr(connection, "MAX_QUEUED_BYTES", 10_000)
    monkeypatch.setattr(gateway.room, "fullness", 0.85)
    async with await WsClient.open(url) as ws:
        await ws.send(start("s"))
        handler = only_socket(app)
        for index in range(100):
            await ws.send(chunk("s", index, AUDIO))
        await until(lambda: handler.queue is not None and handler.queue.size > 10_000)
        assert handler.queue.size < 20_000
        monkeypatch.setattr(gateway.room, "fullness", 0.0)
        await ws.find("s", "ack", 99)
        await worker.take("s")
        assert len(await worker.audio("s", 100)) == 100
        assert await errors(ws, 0) == []


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Act as if so many messages came that reading is paused after each read."""
    monkeypatch.setattr(flow_control, "FREE_MESSAGES_PER_SECOND", -1e9)


async def test_what_comes_while_reading_is_paused_is_read_in_one_go(
    crowded: None, app: AsrApplication, url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost or out of order; a connection that closes meanwhile is noticed."""
    reads: list[int] = []
    read = app.connections.coalescer.after_read

    def seen(frames: flow_control.ServerFrameProtocol, messages: int, size: int, may_pause: bool) -> None:
        reads.append(messages)
        read(frames, messages, size, may_pause)

    monkeypatch.setattr(app.connections.coalescer, "after_read", seen)
    async with await WsClient.open(url) as ws:
        await ws.call(start(mode="stream", format="pcm_s16le"))
        handler = only_socket(app)
        frames = handler.ws_connection
        assert frames is not None
        for first in (0, 7):
            await until(lambda: not frames._reading_paused)
            await ws.write(said(chunk("s", first, AUDIO)) + said(chunk("s", first + 1, AUDIO)))
            await until(lambda: frames._reading_paused)
            reads.clear()
            for index in range(first + 2, first + 7):
                await ws.send(chunk("s", index, AUDIO[index:]))
            await until(lambda: sum(reads) == 5)
            assert reads == [5]
        await until(lambda: len(ws.messages) == 1 + 14)
        assert [message["chunk_index"] for message in ws.messages[1:]] == list(range(14))
        await until(lambda: frames._reading_paused)
    await until(lambda: not app.connections)


async def test_who_waits_for_each_acknowledgement_does_not_wait_for_pauses_too(
    crowded: None, app: AsrApplication, url: str, worker: FakeWorker
) -> None:
    async with await WsClient.open(url) as ws:
        await ws.start("s")
        handler = only_socket(app)
        frames = handler.ws_connection
        assert frames is not None
        for index in range(5):
            assert not frames._reading_paused
            await ws.chunk("s", index, AUDIO)


async def test_a_large_message_is_read_without_a_pause(
    crowded: None, app: AsrApplication, url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with await WsClient.open(url) as ws:
        await ws.call(start())
        await until(lambda: not app.connections.coalescer._paused)
        pauses: list[flow_control.ServerFrameProtocol] = []
        pause = flow_control.ServerFrameProtocol.pause_reading

        def counted(frames: flow_control.ServerFrameProtocol) -> bool:
            pauses.append(frames)
            return pause(frames)

        monkeypatch.setattr(flow_control.ServerFrameProtocol, "pause_reading", counted)
        await ws.call(bytes(3_000_000))
        assert len(pauses) <= 1  # once it is whole
