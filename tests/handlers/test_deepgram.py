"""handlers/deepgram.py: /v1/listen, live and for recordings, as Deepgram's clients use it."""

from __future__ import annotations

import asyncio
import hashlib
import math

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.websocket import websocket_connect

from asrserver.config import Settings
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication
from asrserver.handlers.deepgram import SILENT_SECONDS
from asrserver.protocol import codec
from tests.api_keys import GIVEN
from tests.events import segment
from tests.fakes import FakeWorker
from tests.handlers.samples import AUDIO, only_socket
from tests.handlers.uploads import FILE, Http, answer
from tests.waiting import until
from tests.ws_client import WsClient, look

pytestmark = pytest.mark.gen_test(timeout=60)

PATH = "/v1/listen"
CONFIGURED = "ConfigureSuccess"
BAD_QUERY = "INVALID_QUERY_PARAMETER"
KEY = {"Authorization": f"Token {GIVEN}"}


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str) -> Settings:
    return Settings(redis_url=redis_url, database_url=database_url, api_keys=f"me:{GIVEN}")


@pytest.fixture
def http(http_client: AsyncHTTPClient, base_url: str) -> Http:
    return Http(http_client, base_url)


async def listen(http_server: HTTPServer, base_url: str, query: str = "", **headers: str) -> WsClient:
    url = f"{base_url.replace('http', 'ws', 1)}{PATH}?encoding=linear16{query}"
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return WsClient(await websocket_connect(HTTPRequest(url, headers=names or KEY)))


async def test_a_live_session(http_server: HTTPServer, base_url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """A browser's key is in the subprotocols; what is no message is refused, and the stream goes on."""
    async with await listen(
        http_server, base_url, "&utterance_end_ms=600", Sec_WebSocket_Protocol=f"token, {GIVEN}"
    ) as ws:
        assert ws.connection.selected_subprotocol == "token"
        [sid] = gateway.sessions
        assert ws.connection.headers is not None
        assert ws.connection.headers["dg-request-id"] == sid
        for message in ("no JSON", '{"type": "Sing"}', '{"type": "KeepAlive"}', '{"type": "Configure"}'):
            await ws.send(message)
        refused = [await ws.next() for _ in range(3)]
        assert [one.get("message", one["type"]) for one in refused] == ["no JSON", '{"type": "Sing"}', CONFIGURED]
        await ws.send(AUDIO)
        await ws.send({"type": "Finalize"})
        await until(lambda: gateway.sessions[sid].flushes)
        await worker.take(sid)
        await worker.say(sid, "segment", segments=[segment()], total=1.2)
        await worker.say(sid, "flushed", number=1, total=1.2)
        found = await ws.next()
        assert (found["from_finalize"], found["channel"]["alternatives"][0]["transcript"]) == (True, "word")
        assert await ws.next() == {"type": "UtteranceEnd", "channel": [0, 1], "last_word_end": 1.0}
        for _ in range(2):
            await ws.send({"type": "CloseStream"})
        await worker.final(sid)
        assert (await ws.next())["sha256"] == hashlib.sha256(AUDIO).hexdigest()
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1000


async def test_other_hot_words(http_server: HTTPServer, base_url: str, gateway: Gateway, worker: FakeWorker) -> None:
    """The worker reads of them between the audio; the next owner of the session has them too."""
    async with await listen(http_server, base_url, "&keyterm=Tokyo", **KEY) as ws:
        [sid] = gateway.sessions
        await worker.take(sid)
        await ws.send(AUDIO)
        done = await ws.call({"type": "Configure", "keyterms": [" Madrid ", "", "Rome"]})
        assert (done["type"], done["keyterms"]) == (CONFIGURED, ["Madrid", "Rome"])
        for bad in ("Rome", [1]):
            failed = await ws.call({"type": "Configure", "keyterms": bad})
            assert (failed["type"], failed["code"]) == ("ConfigureFailure", "INVALID_KEYTERMS")
        await ws.send(AUDIO)
        await worker.audio(sid, 2)
        entries = await worker.entries(sid)
        assert [entry.data for entry in entries] == [AUDIO, None, AUDIO]
        changed = entries[1].options
        assert changed is not None
        assert codec.decode_options(changed).hotwords == "Madrid, Rome"
        with look(gateway.settings.redis_url) as client:
            assert client.hget(f"asr_session:{{{sid}}}", "options") == changed


async def test_a_client_that_says_nothing(
    http_server: HTTPServer, base_url: str, gateway: Gateway, app: AsrApplication, worker: FakeWorker
) -> None:
    """KeepAlive keeps the connection; without it, it is closed. One that waits for its last results stays."""
    async with await listen(http_server, base_url) as ws:
        await until(lambda: app.connections)
        handler = only_socket(app)
        [sid] = gateway.sessions
        opened = handler.heard_at
        assert handler.due <= opened + SILENT_SECONDS
        await ws.send({"type": "KeepAlive"})
        await until(lambda: handler.messages == 1)
        assert handler.heard_at > opened
        assert handler.check(opened + SILENT_SECONDS) <= opened + SILENT_SECONDS + 1
        assert not handler.ws_connection.is_closing()
        await ws.send(b"")
        await until(lambda: handler.messages == 2)
        handler.check(handler.heard_at + SILENT_SECONDS + 1)
        await worker.take(sid)
        await worker.final(sid)
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1000
    async with await listen(http_server, base_url) as ws:
        await until(lambda: app.connections)
        handler = only_socket(app)
        assert handler.check(handler.heard_at + SILENT_SECONDS) == math.inf
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1011


@pytest.mark.parametrize(
    ("query", "headers", "status", "code"),
    [
        ("", {"Authorization": "Token wrong"}, 401, "INVALID_AUTH"),
        ("", {"Sec_WebSocket_Protocol": "token, wrong"}, 401, "INVALID_AUTH"),
        ("&model=grass", {}, 400, BAD_QUERY),
        ("&language=klingon", {}, 400, BAD_QUERY),
    ],
)
async def test_a_refused_handshake(
    http_server: HTTPServer, base_url: str, query: str, headers: dict[str, str], status: int, code: str
) -> None:
    with pytest.raises(HTTPClientError) as caught:
        await listen(http_server, base_url, query, **headers)
    response = caught.value.response
    assert response is not None
    assert response.code == status
    assert response.headers["dg-error"]
    body = orjson.loads(response.body)
    assert (body["err_code"], body["request_id"]) == (code, response.headers["dg-request-id"])
    assert body["err_msg"]


@pytest.mark.parametrize(
    ("query", "body", "kind", "format"),
    [
        ("model=nova-3", FILE, "audio/wav", "file"),
        ("model=nova-3&encoding=linear16&sample_rate=8000", FILE, "application/octet-stream", "file"),
        ("encoding=mulaw", bytes(range(256)) * 100, "audio/mulaw", "pcm_mulaw"),
    ],
)
async def test_a_recording(
    http: Http, gateway: Gateway, worker: FakeWorker, query: str, body: bytes, kind: str, format: str
) -> None:
    """What a container's first bytes say counts more than the query."""
    request = asyncio.ensure_future(http.call(f"{PATH}?{query}&utterances=true", body, Content_Type=kind, **KEY))
    await until(lambda: gateway.sessions)
    [session] = gateway.sessions.values()
    assert session.options.format == format
    sid = await answer(gateway, worker, "hello", "world")
    found = orjson.loads((await request).body)
    assert (found["metadata"]["request_id"], found["metadata"]["sha256"]) == (sid, hashlib.sha256(body).hexdigest())
    assert found["results"]["channels"][0]["alternatives"][0]["transcript"] == "hello world"
    assert found["results"]["utterances"][0]["transcript"] == "hello world"
    assert b"".join((await worker.audio(sid, 1)).values()) == body


@pytest.mark.parametrize(
    ("query", "headers", "body", "status", "code"),
    [
        (
            "",
            {"Content_Type": "application/json"},
            b'{"url": "https://x.example/a.wav"}',
            400,
            "INVALID_QUERY_PARAMETER",
        ),
        ("?model=grass", {}, FILE, 400, BAD_QUERY),
        ("", {}, b"text " * 99, 400, "NOT_AUDIO"),
        ("", {"Authorization": ""}, FILE, 401, "INVALID_AUTH"),
    ],
)
async def test_a_refused_recording(
    http: Http, query: str, headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    """A browser's GET is refused in the same shape."""
    response = await http.call(PATH + query, body, **{"Content_Type": "audio/x", **KEY, **headers})
    assert (response.code, orjson.loads(response.body)["err_code"]) == (status, code)
    assert (await http.call(PATH, None, "GET", **KEY)).code == 405
