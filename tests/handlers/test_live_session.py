"""handlers/live_session.py: what all protocols have that it is the base of, tried with Deepgram's."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import replace
from typing import Any

import pytest
from tornado.httpclient import HTTPClientError
from tornado.httpserver import HTTPServer
from tornado.websocket import websocket_connect

from asrserver.errors import Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.protocol.frames import BINARY, TEXT
from tests.events import segment
from tests.fakes import FakeWorker
from tests.handlers.live import session_of
from tests.handlers.samples import AUDIO
from tests.handlers.test_keepalive import UPGRADE
from tests.waiting import until
from tests.ws_client import WsClient, frame, stored

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def listen(base_url: str, http_server: HTTPServer) -> str:
    return base_url.replace("http", "ws", 1) + "/v1/listen?encoding=linear16"


async def ends(ws: WsClient, code: int) -> list[str]:
    """Wait for the end of the connection; the types of its messages."""
    await until(lambda: ws.closed)
    assert ws.connection.close_code == code
    return [message["type"] for message in ws.messages]


async def test_frames_that_come_together_are_one_entry(listen: str, gateway: Gateway, worker: FakeWorker) -> None:
    """And what comes after the end is nothing."""
    async with await WsClient.open(listen) as ws:
        await ws.send(AUDIO)
        sid = await session_of(gateway, worker)
        await worker.audio(sid, 1)
        for _ in range(3):
            await ws.send(AUDIO)
        await until(lambda: gateway.sessions[sid].bytes_in == 4 * len(AUDIO))
        for data in (b"", AUDIO, b""):
            await ws.send(data)
        await worker.final(sid)
        assert await ends(ws, 1000) == ["Metadata"]
    assert b"".join((await worker.audio(sid, 2)).values()) == 4 * AUDIO
    assert not gateway.sessions


async def test_a_start_is_refused_before_the_upgrade(
    listen: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an HTTP status, and nothing is held afterwards."""
    gateway.settings = replace(gateway.settings, max_sessions=1)
    gateway.admission.limits._settings = gateway.settings
    async with await WsClient.open(listen):
        for url, status in ((listen, 503), (f"{listen}&model=grass", 400), (f"{listen}&channels=3", 400)):
            with pytest.raises(HTTPClientError) as caught:
                await websocket_connect(url)
            assert caught.value.code == status
        assert gateway.connections == 1
    await until(lambda: not gateway.connections)


async def test_a_client_that_goes_leaves_nothing_open(
    listen: str, gateway: Gateway, worker: FakeWorker, database_url: str
) -> None:
    """It cannot resume: its session is ended at once, and what it said is kept."""
    ws = await WsClient.open(listen)
    await ws.send(AUDIO)
    sid = await session_of(gateway, worker)
    ws.drop()
    await ws.close()
    assert await worker.ended(sid) == "interrupted"
    await worker.final(sid, "kept")
    await until(gateway.write_behind.is_flushed)
    assert stored(database_url, sid) == ("interrupted", "kept", 1)


REALTIME = [
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(AUDIO).decode()},
    {"type": "input_audio_buffer.append", "audio": base64.b64encode(AUDIO).decode()},
]


def said(*messages: bytes | dict[str, Any]) -> bytes:
    """Frames of messages, and of a close."""
    frames = [
        frame(BINARY, data) if isinstance(data, bytes) else frame(TEXT, json.dumps(data).encode()) for data in messages
    ]
    return b"".join(frames) + frame(8, b"\x03\xe8")


@pytest.mark.parametrize(
    ("path", "sent", "status"),
    [
        ("/v1/listen?encoding=linear16", said(AUDIO, AUDIO, {"type": "CloseStream"}), "done"),
        ("/v1/listen?encoding=linear16", said(AUDIO, AUDIO), "interrupted"),
        ("/vosk", said(AUDIO, AUDIO, {"eof": 1}), "done"),
        ("/vosk", said(AUDIO, AUDIO), "interrupted"),
        ("/funasr", said({"is_speaking": True}, AUDIO, AUDIO, {"is_speaking": False}), "done"),
        ("/whisperlive?format=int16", said({"uid": "u"}, AUDIO, AUDIO, b"END_OF_AUDIO"), "done"),
        ("/v3/ws?sample_rate=16000", said(AUDIO, AUDIO, {"type": "Terminate"}), "done"),
        ("/v1/realtime?intent=transcription", said(*REALTIME), "done"),
    ],
)
async def test_a_client_that_says_everything_and_leaves_in_one_go(
    http_server: HTTPServer, http_port: int, gateway: Gateway, worker: FakeWorker, path: str, sent: bytes, status: str
) -> None:
    """All of it came whole, while its session was being made: it was dropped."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(UPGRADE.replace(b"/ws/asr?x=1", path.encode()) + sent)
    sid = await session_of(gateway, worker)
    assert await worker.ended(sid) == status
    assert b"".join((await worker.audio(sid, 1)).values()).count(AUDIO) == 2
    await worker.final(sid)
    await reader.read()
    writer.close()
    await until(lambda: not gateway.sessions and not gateway.connections)
    assert gateway.held.total == 0


GERMAN = {"type": "session.update", "session": {"audio": {"input": {"transcription": {"language": "de"}}}}}


@pytest.mark.parametrize(
    ("path", "sent", "statuses"),
    [
        ("/vosk", said(AUDIO, {"config": {"sample_rate": 16000}}, AUDIO, {"eof": 1}), ["done", "done"]),
        ("/vosk", said(AUDIO, {"config": {"sample_rate": 16000}}, AUDIO), ["done", "interrupted"]),
        ("/funasr", said(AUDIO, {"is_speaking": False}, AUDIO, {"is_speaking": False}), ["done", "done"]),
        ("/v1/realtime?intent=transcription", said(REALTIME[0], GERMAN, REALTIME[1]), ["done", "done"]),
    ],
)
async def test_a_client_that_asks_for_something_else_and_leaves_in_one_go(
    http_server: HTTPServer,
    http_port: int,
    gateway: Gateway,
    worker: FakeWorker,
    path: str,
    sent: bytes,
    statuses: list[str],
) -> None:
    """What it sent after that is another session, which begins when the one before is over: it was dropped."""
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(UPGRADE.replace(b"/ws/asr?x=1", path.encode()))
    await reader.readuntil(b"\r\n\r\n")
    writer.write(sent)
    writer.close()
    for status in statuses:
        sid = await session_of(gateway, worker)
        assert await worker.ended(sid) == status
        assert b"".join((await worker.audio(sid, 1)).values()) == AUDIO
        await worker.final(sid)
        await until(lambda sid=sid: sid not in gateway.sessions)
    await until(lambda: not gateway.connections)
    assert not gateway.sessions
    assert gateway.held.total == 0


async def test_a_session_that_moves_away_while_the_next_one_waits_for_its_end(
    http_server: HTTPServer, http_port: int, gateway: Gateway, worker: FakeWorker
) -> None:
    """That begins at once: it waited a minute for texts that come elsewhere."""
    _, writer = await asyncio.open_connection("127.0.0.1", http_port)
    path = "/v1/realtime?intent=transcription"
    writer.write(UPGRADE.replace(b"/ws/asr?x=1", path.encode()) + said(REALTIME[0], GERMAN, REALTIME[1]))
    sid = await session_of(gateway, worker)
    assert await worker.ended(sid) == "done"
    gateway.sessions[sid].leave(Unavailable("session_moved", "it is at another gateway"))
    await until(lambda: len(gateway.sessions) == 2)
    writer.close()


async def test_refused_audio_ends_the_session(listen: str, gateway: Gateway, worker: FakeWorker) -> None:
    """The client would not send it again. What it sent before is recognised, and then the connection closed."""
    async with await WsClient.open(listen) as ws:
        await ws.send(AUDIO)
        sid = await session_of(gateway, worker)
        await ws.send(bytes(gateway.settings.max_message + 1))
        await until(lambda: ws.messages)
        assert ws.messages[0]["variant"] == "message_too_large"
        await ws.send(AUDIO)
        await worker.say(sid, "segment", segments=[segment()])
        await worker.final(sid)
        assert await ends(ws, 1009) == ["Error", "Results", "Metadata"]
    assert b"".join((await worker.audio(sid, 1)).values()) == AUDIO


async def test_a_session_that_the_server_ends(
    listen: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the close says that it was not the client."""
    monkeypatch.setattr(gateway.admission, "is_idle", lambda session: True)
    async with await WsClient.open(listen) as ws:
        await ws.send(AUDIO)
        sid = await session_of(gateway, worker)
        await worker.final(sid)
        assert await ends(ws, 1008) == ["Error", "Metadata"]


async def test_a_session_that_is_lost(listen: str, gateway: Gateway) -> None:
    async with await WsClient.open(listen) as ws:
        await ws.send(AUDIO)
        await until(lambda: gateway.sessions)
        [session] = gateway.sessions.values()
        await until(lambda: not session.in_flight and session.order.last == 0)
        gateway.sessions.give_up(session, 1, Unavailable("broker_unavailable", "Redis is away"))
        assert await ends(ws, 1013) == ["Error"]


async def test_a_failure_of_the_worker(listen: str, gateway: Gateway, worker: FakeWorker) -> None:
    async with await WsClient.open(listen) as ws:
        await ws.send(AUDIO)
        sid = await session_of(gateway, worker)
        await worker.say(sid, "error", code="model_unavailable", message="no")
        await worker.say(sid, "final", status="error")
        assert await ends(ws, 1011) == ["Error", "Metadata"]
