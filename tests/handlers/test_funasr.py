"""handlers/funasr.py: recordings one after the other on one connection, and their ends."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.websocket import websocket_connect

from asrserver.gateway.gateway import Gateway
from tests.fakes import FakeWorker
from tests.handlers.live import say, session_of
from tests.handlers.samples import AUDIO
from tests.recordings import Utterance
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)

FIRST: dict[str, Any] = {"mode": "2pass", "chunk_size": [5, 10, 5], "wav_name": "one", "is_speaking": True}
END = {"is_speaking": False, "is_end": True}


@pytest.mark.parametrize("path", ["/funasr", "/"])
async def test_recordings_one_after_the_other(ws_url: str, gateway: Gateway, worker: FakeWorker, path: str) -> None:
    """The end of each is acknowledged to those who ask for that; the connection stays open."""
    async with await WsClient.open(ws_url + path) as ws:
        for name, asks in (("one", True), ("two", False)):
            await ws.send({**FIRST, "wav_name": name})
            await ws.send(AUDIO)
            sid = await session_of(gateway, worker)
            worker.partial(sid, "hel", "hel")
            assert (await ws.next())["mode"] == "2pass-online"
            await ws.send({"is_speaking": False, "is_end": asks})
            await ws.send({"wav_name": "three"})  # waits until the end was told
            await worker.ended(sid)
            await say(worker, sid, "hello")
            await worker.final(sid)
            found = await ws.next()
            assert (found["mode"], found["text"]) == ("2pass-offline", "hello")
            assert (found["is_final"], found["wav_name"]) == (True, name)
            if asks:
                assert await ws.next() == {"mode": "2pass", "wav_name": name, "is_final": True, "is_end": True}
        assert not ws.closed
    assert len(ws.messages) == 5


async def test_the_subprotocol_of_its_own_client(ws_url: str, gateway: Gateway) -> None:
    """By it the connection is known, and it must be answered; without audio the end is the whole answer."""
    connection = await websocket_connect(ws_url + "/", subprotocols=["binary"])
    assert connection.selected_subprotocol == "binary"
    async with WsClient(connection) as ws:
        await ws.send(END)
        assert (await ws.next())["text"] == ""
        assert (await ws.next())["is_end"]
    assert not gateway.sessions


@pytest.mark.parametrize("format", ["pcm", "wav"])
async def test_a_file_with_its_header(ws_url: str, gateway: Gateway, worker: FakeWorker, format: str) -> None:
    """However it is called, it is taken for what it is."""
    wav = Utterance("", "", AUDIO).wav
    async with await WsClient.open(ws_url + "/funasr?language=en") as ws:
        await ws.send({**FIRST, "mode": "offline", "wav_format": format, "audio_fs": 96000})
        for at in range(0, len(wav), 2000):
            await ws.send(wav[at : at + 2000])
        await ws.send({"is_speaking": False})
        sid = await session_of(gateway, worker)
        options = gateway.sessions[sid].options
        assert (options.format, options.language) == ("file", "en")
        await worker.final(sid)
        found = await ws.next()
        assert (found["mode"], found["is_final"]) == ("offline", True)
        assert b"".join((await worker.audio(sid, 1)).values()) == wav


@pytest.mark.parametrize(
    ("first", "error"), [({"mode": "3pass"}, "mode"), ({"audio_fs": 1}, "sample_rate"), ("hello", "JSON")]
)
async def test_what_cannot_be_done_is_told_at_the_end(ws_url: str, gateway: Gateway, first: Any, error: str) -> None:
    """And is over with it."""
    async with await WsClient.open(ws_url + "/funasr") as ws:
        await ws.send({**FIRST, **first} if isinstance(first, dict) else first)
        for _ in range(2):
            await ws.send(AUDIO)
        await ws.send({"is_speaking": False, "mode": "offline", "is_end": True})
        found, end = await ws.next(), await ws.next()
        assert error in found["error"]
        assert (end["is_final"], end["error"]) == (False, found["error"])
        assert not gateway.sessions
        await ws.send({**FIRST, "audio_fs": 16000})
        await ws.send(AUDIO)
        await until(lambda: gateway.sessions)


async def test_a_session_that_the_server_ends(ws_url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """Its text is told, and audio that comes after its end is dropped."""
    async with await WsClient.open(ws_url + "/funasr") as ws:
        await ws.send(FIRST)
        await ws.send(AUDIO)
        sid = await session_of(gateway, worker)
        await say(worker, sid, "hello")
        assert (await ws.next())["text"] == "hello"
        await worker.say(sid, "error", code="model_unavailable", message="no model")
        await worker.say(sid, "final", status="error")
        await until(lambda: not gateway.sessions)
        await ws.send(AUDIO)
        await ws.send(END)
        assert (await ws.next())["error"] == "no model"
        assert not (await ws.next())["is_final"]
    assert not gateway.sessions
