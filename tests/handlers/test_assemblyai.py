"""handlers/assemblyai.py: sessions of AssemblyAI's clients, from the handshake to the end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tornado.httpclient import HTTPClientError
from tornado.httpserver import HTTPServer
from tornado.websocket import websocket_connect

from asrserver.gateway.gateway import Gateway
from tests.events import segment
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def url(base_url: str, http_server: HTTPServer) -> str:
    return base_url.replace("http", "ws", 1) + "/v3/ws?sample_rate=16000"


async def test_a_session(url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """It begins with the connection, is flushed on request, and ends with a termination."""
    async with await WsClient.open(f"{url}&format_turns=true&speech_model=universal-streaming-english") as ws:
        begin = await ws.next()
        assert begin["type"] == "Begin"
        sid = begin["id"]
        await worker.take(sid)
        await ws.send(AUDIO)
        for ignored in ({"type": "KeepAlive"}, {"type": "future"}):
            await ws.send(ignored)
        await ws.send({"type": "ForceEndpoint"})
        await worker.flush(sid)
        await worker.say(sid, "segment", text="One.", segments=[segment(text="One.")])
        await worker.say(sid, "flushed", number=1)
        await ws.send({"type": "Terminate"})
        await ws.send({"type": "ForceEndpoint"})  # too late
        await worker.final(sid)
        await until(lambda: ws.closed)
        assert [message["type"] for message in ws.messages] == ["Begin", "Turn", "Turn", "Termination"]
        assert [message["turn_is_formatted"] for message in ws.messages[1:3]] == [False, True]
        assert ws.connection.close_code == 1000


async def test_the_handshake_is_refused(url: str, gateway: Gateway) -> None:
    """By an HTTP status, after which clients do not try again."""
    for query, status in (("&encoding=mp3", 400), ("&speech_model=grass", 400), ("&language_code=klingon", 400)):
        with pytest.raises(HTTPClientError) as caught:
            await websocket_connect(url + query)
        assert caught.value.code == status
    gateway.settings = replace(gateway.settings, max_sessions=1)
    gateway.admission.limits._settings = gateway.settings
    async with await WsClient.open(url) as ws:
        await ws.next()
        with pytest.raises(HTTPClientError, match="503"):
            await websocket_connect(url)


async def test_a_bad_message_is_a_warning(url: str, gateway: Gateway) -> None:
    """An error would be the end of the client's session."""
    async with await WsClient.open(url) as ws:
        await ws.next()
        found = await ws.call("hello")
        assert (found["type"], found["warning_code"]) == ("Warning", 4100)
        assert (await ws.call({"type": "UpdateConfiguration", "prompt": "x"}))["type"] == "Warning"
        assert "keyterms_prompt" in (await ws.call({"type": "UpdateConfiguration", "keyterms_prompt": 1}))["warning"]
        await ws.send({"type": "UpdateConfiguration", "keyterms_prompt": ["Rome"]})
        [session] = gateway.sessions.values()
        await until(lambda: session.options.hotwords == "Rome")
        assert not ws.closed


async def test_audio_that_is_refused_is_an_error(url: str, gateway: Gateway, worker: FakeWorker) -> None:
    async with await WsClient.open(url) as ws:
        sid = (await ws.next())["id"]
        await worker.take(sid)
        await ws.send(bytes(gateway.settings.max_message + 1))
        assert (await ws.next())["type"] == "Error"
        await worker.final(sid)
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1009
