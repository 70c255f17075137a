"""handlers/realtime.py: one connection over several sessions, what is refused, and how it ends."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any, Self

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.websocket import websocket_connect

from asrserver.gateway.gateway import Gateway
from asrserver.gateway.session import Session
from asrserver.handlers.app import AsrApplication
from asrserver.protocol import json_messages
from asrserver.protocol.events import SpeechStarted
from tests.events import segment
from tests.fakes import FakeWorker
from tests.waiting import until
from tests.ws_client import Message, WsClient, stored

pytestmark = pytest.mark.gen_test(timeout=60)

#: A second of audio.
SECOND = bytes(48000)


@pytest.fixture
def realtime(base_url: str, http_server: HTTPServer) -> str:
    return base_url.replace("http", "ws", 1) + "/v1/realtime?intent=transcription"


class Client(WsClient):
    """A client of the interface."""

    @classmethod
    async def open(cls, url: str) -> Self:
        return cls(await websocket_connect(url))

    async def __aenter__(self) -> Self:
        return self

    async def say(self, kind: str, **fields: Any) -> None:
        await self.send({"type": kind, **fields})

    async def append(self, audio: bytes) -> None:
        await self.say("input_audio_buffer.append", audio=base64.b64encode(audio).decode())

    async def update(self, **given: Any) -> Message:
        await self.say("session.update", session={"audio": {"input": given}}, event_id="update")
        return await self.next()

    async def get(self, kind: str) -> Message:
        """The next message whose type ends so."""
        while True:
            message = await self.next()
            if message["type"].endswith(kind):
                return message

    async def ended(self, code: int, reason: str = "") -> None:
        await until(lambda: self.closed)
        assert (self.connection.close_code, self.connection.close_reason or "") == (code, reason)


async def session_of(gateway: Gateway, worker: FakeWorker, sid: str) -> Session:
    """A session, once the worker has it."""
    await until(lambda: sid in gateway.sessions)
    await worker.take(sid)
    return gateway.sessions[sid]


def name_of(created: Message) -> str:
    """The id of the session underneath."""
    assert created["type"] == "session.created"
    return str(created["session"]["id"])


async def test_turns_on_demand(realtime: str, gateway: Gateway, worker: FakeWorker, database_url: str) -> None:
    """No session before the first audio; then committed audio is text, and a client that closes is done."""
    async with await Client.open(realtime) as ws:
        sid = name_of(await ws.next())
        assert (await ws.update(turn_detection=None, format={"type": "audio/pcmu"}))["type"] == "session.updated"
        assert not gateway.sessions
        for _ in range(2):
            await ws.append(bytes(4000))
        session = await session_of(gateway, worker, sid)
        await worker.audio(sid, 2)
        assert session.options.format == "pcm_mulaw"
        await ws.say("input_audio_buffer.commit")
        item = (await ws.get("committed"))["item_id"]
        await worker.say(sid, "segment", segments=[segment(0, "hello")])
        await worker.say(sid, "flushed", number=1)
        completed = await ws.get("completed")
        assert (completed["item_id"], completed["transcript"]) == (item, "hello")
        assert completed["usage"]["seconds"] == 1.0
    await worker.final(sid, "hello", 2)
    await until(gateway.write_behind.is_flushed)
    assert stored(database_url, sid) == ("done", "hello", 2)


async def test_megabytes_of_audio_are_decoded_in_slices(
    realtime: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others have their turn meanwhile; and what is no base64 is refused as a whole."""
    gateway.settings = replace(gateway.settings, max_message=1 << 24)
    decode, sizes = json_messages._decoded, list[int]()

    def decoded(text: str) -> bytes:
        sizes.append(len(text))
        return decode(text)

    monkeypatch.setattr(json_messages, "_decoded", decoded)
    async with await Client.open(realtime) as ws:
        sid = name_of(await ws.next())
        await ws.say("input_audio_buffer.append", audio="QUJD" * json_messages.SLICE + "?")
        assert (await ws.get("error"))["error"]["code"] == "bad_base64"
        assert not gateway.sessions
        await ws.append(bytes(range(256)) * 6000)
        await session_of(gateway, worker, sid)
        assert b"".join((await worker.audio(sid, 24)).values()) == bytes(range(256)) * 6000
        assert max(sizes) <= json_messages.SLICE


async def test_minutes_of_audio_in_one_message(realtime: str, gateway: Gateway, worker: FakeWorker) -> None:
    """They are several chunks, and what comes behind them waits its turn."""
    gateway.settings = replace(gateway.settings, max_message=1 << 24)
    async with await Client.open(realtime) as ws:
        sid = name_of(await ws.next())
        audio = bytes(range(256)) * 1000
        await ws.append(audio)
        await ws.say("input_audio_buffer.commit")
        await ws.get("committed")
        await session_of(gateway, worker, sid)
        assert b"".join((await worker.audio(sid, 4)).values()) == audio
        await worker.say(sid, "flushed", number=1)
        assert (await ws.get("completed"))["transcript"] == ""


async def test_options_that_change(realtime: str, gateway: Gateway, worker: FakeWorker) -> None:
    """Another session follows when the one before has given its text; its client sees one."""
    async with await Client.open(realtime) as ws:
        sid = name_of(await ws.next())
        await ws.append(SECOND)
        first = await session_of(gateway, worker, sid)
        worker.broker.publish(worker.claims[sid], SpeechStarted(session_id=sid, start=0.2, follows=0))
        await ws.get("speech_started")
        await ws.update(transcription={"language": "de", "keywords": ["Zürich"]})
        await ws.append(SECOND)  # the speech goes on: it is not cut
        await worker.audio(sid, 2)
        await worker.say(sid, "segment", segments=[segment(0, "eins", end=1.9)])
        await ws.get("completed")
        await ws.append(SECOND)
        await worker.final(sid, "eins")
        second = await session_of(gateway, worker, f"{sid}.2")
        assert [(one.options.language, one.options.hotwords) for one in (first, second)] == [
            (None, ""),
            ("de", "Zürich"),
        ]
        await worker.say(f"{sid}.2", "segment", segments=[segment(0, "zwei")])
        assert (await ws.get("speech_started"))["audio_start_ms"] == 2000
        assert (await ws.get("completed"))["transcript"] == "zwei"
        assert not [m for m in ws.messages if m["type"] == "error"]


async def test_a_session_that_ended_for_want_of_audio(
    realtime: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its client has done nothing wrong, and may go on. What it has not committed is not lost."""
    async with await Client.open(realtime) as ws:
        sid = name_of(await ws.next())
        await ws.update(turn_detection=None)
        await ws.append(SECOND)
        await session_of(gateway, worker, sid)
        await worker.say(sid, "segment", segments=[segment(0, "before")])
        monkeypatch.setattr(gateway.admission, "is_idle", lambda session: True)
        await worker.final(sid)
        monkeypatch.undo()
        await until(lambda: not gateway.sessions)
        await ws.say("input_audio_buffer.commit")
        assert (await ws.get("completed"))["transcript"] == "before"
        await ws.say("input_audio_buffer.clear")
        await ws.get("cleared")
        await ws.append(SECOND)
        await session_of(gateway, worker, f"{sid}.2")


_BAD_FORMAT = ("bad_option", "session.audio.input.format.type")


async def test_mistakes_are_told_and_the_connection_goes_on(realtime: str, gateway: Gateway) -> None:
    async with await Client.open(realtime) as ws:
        await ws.next()
        for message, code, param in (
            ("{", "bad_json", None),
            ({"event_id": "e"}, "bad_request", None),
            ({"type": "input_audio_buffer.append", "audio": "?"}, "bad_base64", None),
            ({"type": "input_audio_buffer.append"}, "bad_request", None),
            ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
            ({"type": "session.update"}, "bad_option", "session"),
            ({"type": "session.update", "session": {"audio": {"input": {"format": {"type": []}}}}}, *_BAD_FORMAT),
            (b"\0\0", "bad_request", None),
        ):
            answer = await ws.call(message)
            assert (answer["type"], answer["error"]["code"], answer["error"]["param"]) == ("error", code, param)
        answer = (await ws.update(transcription={"model": "grass"}))["error"]
        assert (answer["code"], answer["event_id"]) == ("model_not_found", "update")
        assert answer["param"] == "session.audio.input.transcription.model"
        for kind in ("response.create", "conversation.item.create", "output_audio_buffer.clear"):
            await ws.say(kind)
        assert (await ws.update())["session"]["audio"]["input"]["transcription"]["model"] == "whisper-1"
        assert not gateway.sessions


@pytest.mark.parametrize("query", ["", "&model=gpt-realtime-2", "&model=gpt-4o-transcribe&future=1"])
async def test_the_model_of_the_query(realtime: str, query: str) -> None:
    """The one that hears is taken, the one that talks is not, and neither is refused."""
    async with await Client.open(realtime + query) as ws:
        heard = (await ws.next())["session"]["audio"]["input"]["transcription"]["model"]
        assert heard == ("gpt-4o-transcribe" if "transcribe" in query else "whisper-1")


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ("realtime, openai-insecure-api-key.x, openai-beta.realtime-v1", "realtime"),
        ("openai-insecure-api-key.x,openai-beta.realtime-v1", "openai-beta.realtime-v1"),
        ("openai-insecure-api-key.x", None),
    ],
)
async def test_the_subprotocol_is_never_the_key(realtime: str, offered: str, chosen: str | None) -> None:
    connection = await websocket_connect(HTTPRequest(realtime, headers={"Sec-WebSocket-Protocol": offered}))
    assert connection.selected_subprotocol == chosen
    connection.close()
    while await connection.read_message() is not None:
        pass


async def test_ends_that_the_server_makes(
    realtime: str, app: AsrApplication, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Limits are told before the connection is; the rest is said by the code of the close."""
    gateway.settings = replace(gateway.settings, max_sessions=1)
    gateway.admission.limits._settings = gateway.settings
    async with await Client.open(realtime) as ws, await Client.open(realtime) as late:
        sid = name_of(await ws.next())
        await ws.append(SECOND)
        await session_of(gateway, worker, sid)
        with pytest.raises(HTTPClientError, match="503"):
            await websocket_connect(realtime)
        await late.append(SECOND)
        await late.ended(1013, "too_many_sessions")
        assert len(late.messages) == 1
        gateway.admission.limits._settings = replace(gateway.settings, max_session=0.5)
        await ws.append(SECOND)
        assert (await ws.get("error"))["error"]["code"] == "session_too_long"
        await worker.final(sid)
        await ws.ended(1008, "session_too_long")
    async with await Client.open(realtime) as broken:
        sid = name_of(await broken.next())
        gateway.admission.limits._settings = gateway.settings
        await broken.append(SECOND)
        await session_of(gateway, worker, sid)
        await worker.say(sid, "error", code="model_unavailable", message="no")
        await worker.say(sid, "final", status="error")
        assert (await broken.get("failed"))["error"]["code"] == "model_unavailable"
        await broken.ended(1011, "error")
    async with await Client.open(realtime) as away:
        app.send_away([handler for handler in app.connections if handler.resumable])
        await away.ended(1012, "the server is restarting: connect again")
