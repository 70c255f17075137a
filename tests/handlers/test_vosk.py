"""handlers/vosk.py, dialogue.py, root.py: clients in lock step, one answer to each frame, and ends of all kinds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tornado.httpclient import HTTPClientError
from tornado.websocket import websocket_connect

from asrserver.gateway.gateway import Gateway
from asrserver.handlers import dialogue
from asrserver.protocol.frames import BINARY
from tests.fakes import FakeWorker
from tests.handlers.live import say, session_of
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient, frame, said

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.mark.parametrize("path", ["/vosk", "/vosk/", "/"])
async def test_a_client_in_lock_step(ws_url: str, gateway: Gateway, worker: FakeWorker, path: str) -> None:
    """Each frame has one answer, at once; the configuration has none."""
    async with await WsClient.open(ws_url + path) as ws:
        await ws.send({"config": {"sample_rate": 16000}})
        assert await ws.call(AUDIO) == {"partial": ""}
        sid = await session_of(gateway, worker)
        worker.partial(sid, "hel")
        while (found := await ws.call(AUDIO)) == {"partial": ""}:
            pass
        assert found == {"partial": "hel"}
        await say(worker, sid, "hello")
        while (found := await ws.call(AUDIO)) == {"partial": "hel"}:
            pass
        assert found == {"text": "hello"}
        assert await ws.call(AUDIO) == {"partial": ""}
        await ws.send('{"eof" : 1}')
        await worker.ended(sid)
        await say(worker, sid, "world")
        await worker.final(sid)
        assert await ws.next() == {"text": "world"}
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1000
    assert gateway.sessions == {}


async def test_frames_that_come_together_have_an_answer_each(ws_url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """The audio is 8 kHz where nothing was said of it; a message behind it waits its turn."""
    async with await WsClient.open(ws_url + "/") as ws:
        for _ in range(5):
            await ws.send(AUDIO)
        await ws.send({"eof": 1})
        sid = await session_of(gateway, worker)
        assert gateway.sessions[sid].options.sample_rate == 8000
        await worker.final(sid)
        await until(lambda: ws.closed)
        assert ws.messages == [{"partial": ""}] * 5 + [{"text": ""}]
    assert b"".join((await worker.audio(sid, 1)).values()) == 5 * AUDIO


async def test_a_reset_tells_what_was_said_so_far(ws_url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """Frames behind it have their answers after its own."""
    async with await WsClient.open(ws_url + "/vosk") as ws:
        assert await ws.call({"reset": 1}) == {"text": ""}
        assert await ws.call(AUDIO) == {"partial": ""}
        sid = await session_of(gateway, worker)
        await ws.send({"reset": 1})
        await ws.send(AUDIO)
        await worker.flush(sid)
        await say(worker, sid, "one")
        assert len(ws.messages) == 2
        await worker.say(sid, "flushed", number=1)
        assert await ws.next() == {"text": "one"}
        assert await ws.next() == {"partial": ""}


async def test_another_sample_rate_is_another_session(ws_url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """What was said before is told all the same."""
    async with await WsClient.open(ws_url + "/vosk?language=de") as ws:
        await ws.call(AUDIO)
        first = await session_of(gateway, worker)
        assert gateway.sessions[first].options.language == "de"
        await ws.send({"config": {"sample_rate": 8000}})  # as it is
        await ws.send({"config": {"sample_rate": 16000}})
        await ws.send(AUDIO)
        await worker.ended(first)
        await say(worker, first, "one")
        await worker.final(first)
        assert await ws.next() == {"text": "one"}
        second = await session_of(gateway, worker)
        assert gateway.sessions[second].options.sample_rate == 16000
        await ws.send({"eof": 1})
        await worker.final(second)
        assert await ws.next() == {"text": ""}


async def test_an_end_without_audio(ws_url: str, gateway: Gateway) -> None:
    async with await WsClient.open(ws_url + "/vosk") as ws:
        assert await ws.call({"eof": 1}) == {"text": ""}
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1000


async def test_what_cannot_be_done_is_an_answer(ws_url: str, gateway: Gateway) -> None:
    """What is no message is refused, and the connection goes on; a session that cannot be started ends it."""
    async with await WsClient.open(ws_url + "/vosk") as ws:
        assert "sample_rate" in (await ws.call({"config": {"sample_rate": 400}}))["error"]
        assert "JSON" in (await ws.call("hello"))["error"]
        await ws.send({"config": {"model": "grass"}})
        assert "grass" in (await ws.call(AUDIO))["error"]
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1008
    gateway.settings = replace(gateway.settings, max_sessions=1)
    gateway.admission.limits._settings = gateway.settings
    async with await WsClient.open(ws_url + "/vosk") as one, await WsClient.open(ws_url + "/vosk") as other:
        await one.call(AUDIO)
        assert "limit" in (await other.call(AUDIO))["error"]
        await until(lambda: other.closed)
        assert other.connection.close_code == 1013
    with pytest.raises(HTTPClientError, match="400"):
        await websocket_connect(ws_url + "/vosk?language=klingon")


async def test_a_first_message_of_no_protocol(ws_url: str, gateway: Gateway) -> None:
    async with await WsClient.open(ws_url + "/") as ws:
        assert (await ws.call({"action": "start"}))["code"] == "bad_request"
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1008


async def test_what_follows_a_first_message_of_no_protocol(
    ws_url: str, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """It came with it, and is for nobody."""
    async with await WsClient.open(ws_url + "/") as ws:
        await ws.write(said({"action": "start"}) + said({"eof": 1}) + frame(BINARY, AUDIO))
        await until(lambda: ws.closed)
        assert [message["code"] for message in ws.messages] == ["bad_request"]
    assert not [record for record in caplog.records if record.exc_info]


async def test_a_session_that_fails(ws_url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """The connection ends with it: a further frame would only fail too."""
    async with await WsClient.open(ws_url + "/vosk") as ws:
        await ws.call(AUDIO)
        sid = await session_of(gateway, worker)
        await worker.say(sid, "error", code="model_unavailable", message="no model")
        await worker.say(sid, "final", status="error")
        await until(lambda: ws.closed)
        assert ws.messages[1:] == [{"error": "no model"}, {"text": ""}]
        assert ws.connection.close_code == 1011


async def test_a_reset_without_an_answer(ws_url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue, "ANSWER_SECONDS", 0.0)
    async with await WsClient.open(ws_url + "/vosk") as ws:
        await ws.call(AUDIO)
        assert "no text" in (await ws.call({"reset": 1}))["error"]
    await until(lambda: not gateway.connections)
