"""handlers/whisperlive.py: sessions of WhisperLive's clients, and audio that stalls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from asrserver.config import Settings
from asrserver.gateway.gateway import Gateway
from asrserver.handlers import whisperlive
from asrserver.handlers.app import AsrApplication
from asrserver.protocol.whisperlive import widened
from tests.events import segment
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO, only_socket
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str) -> Settings:
    """With connections that are looked at often."""
    return Settings(redis_url=redis_url, database_url=database_url, ping_interval=0.5)


@pytest.fixture
def begin(ws_url: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Return a function that opens a session: await begin(ws, **options) returns its id."""

    async def started(ws: WsClient, **options: Any) -> str:
        ready = await ws.call({"uid": "u", "language": None, "model": "small", **options})
        assert ready == {"uid": "u", "message": "SERVER_READY", "backend": "faster_whisper"}
        [sid] = gateway.sessions
        await worker.take(sid)
        return sid

    return started


@pytest.mark.parametrize("path", ["/whisperlive", "/"])
async def test_a_session(ws_url: str, worker: FakeWorker, begin: Callable[..., Any], path: str) -> None:
    async with await WsClient.open(ws_url + path) as ws:
        sid = await begin(ws)
        await ws.send({"uid": "u"})  # ignored
        await ws.send(AUDIO)
        worker.partial(sid, "hel")
        assert (await ws.next())["segments"][0]["text"] == " hel"
        await worker.say(sid, "segment", text="hello", segments=[segment(text="hello")])
        await ws.send(b"END_OF_AUDIO")
        await ws.send(AUDIO)
        await worker.final(sid)
        await until(lambda: ws.closed)
        assert [message.get("message", message.get("language")) for message in ws.messages[2:]] == [
            *("en", None, None, "DISCONNECT")
        ]
        assert ws.connection.close_code == 1000
    assert b"".join((await worker.audio(sid, 1)).values()) == AUDIO


@pytest.mark.parametrize("format", ["int16", "uint8"])
async def test_formats(
    ws_url: str, gateway: Gateway, worker: FakeWorker, begin: Callable[..., Any], format: str
) -> None:
    async with await WsClient.open(ws_url + "/whisperlive") as ws:
        sid = await begin(ws, audio_format=format)
        assert gateway.sessions[sid].options.format == "pcm_s16le"
        await ws.send(AUDIO)
        data = b"".join((await worker.audio(sid, 1)).values())
        assert data == (AUDIO if format == "int16" else widened(AUDIO))


async def test_audio_that_stalls_is_recognised(
    ws_url: str,
    app: AsrApplication,
    gateway: Gateway,
    worker: FakeWorker,
    begin: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, until there is more of it."""
    monkeypatch.setattr(whisperlive, "STALL_SECONDS", 0.2)
    async with await WsClient.open(ws_url + "/whisperlive") as ws:
        sid = await begin(ws)
        for number in (1, 2):
            await ws.send(AUDIO)
            await worker.flush(sid, number)
        handler = only_socket(app)
        handler.check(handler.heard_at + 60)
        assert gateway.sessions[sid].flushes == 2


async def test_errors_are_status_messages(ws_url: str, gateway: Gateway) -> None:
    """And the end of the connection."""
    for first, words in (("hello", "JSON"), ({"uid": None}, "uid"), ({"uid": "u", "model": "grass"}, "grass")):
        async with await WsClient.open(ws_url + "/whisperlive") as ws:
            found = await ws.call(first)
            assert (found["status"], found["uid"]) == ("ERROR", "u" if words == "grass" else None)
            assert words in found["message"]
            await until(lambda ws=ws: ws.closed)
            assert ws.connection.close_code == 1008
    async with await WsClient.open(ws_url + "/whisperlive") as ws:
        assert "options" in (await ws.call(AUDIO))["message"]
    gateway.settings = replace(gateway.settings, max_sessions=1)
    gateway.admission.limits._settings = gateway.settings
    async with await WsClient.open(ws_url + "/") as one, await WsClient.open(ws_url + "/") as other:
        assert (await one.call({"uid": "1"}))["message"] == "SERVER_READY"
        assert await other.call({"uid": "2"}) == {"uid": "2", "status": "WAIT", "message": 1}
        await until(lambda: other.closed)
        assert other.connection.close_code == 1013
