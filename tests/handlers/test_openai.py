"""handlers/openai.py, upload.py, transcribe.py: uploads in all shapes, answers in all formats, errors on all paths."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.tcpclient import TCPClient

from asrserver.auth.access import Access
from asrserver.gateway.gateway import Gateway
from asrserver.handlers import long_answer, spool, upload
from tests.api_keys import GIVEN
from tests.events import segment
from tests.fakes import FakeWorker
from tests.handlers.uploads import FILE, FORM, GOOD, MODEL, PATH, Http, Part, answer, form, posted
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)

#: How files begin that cannot be decoded piece by piece.
AIFF = b"FORM\0\0\0\0AIFF"
GSM = struct.pack("<4sI4s4sIHHIIHHHH", b"RIFF", 0, b"WAVE", b"fmt ", 20, 0x31, 1, 8000, 1625, 65, 0, 2, 320)


@pytest.fixture
def http(http_client: AsyncHTTPClient, base_url: str) -> Http:
    return Http(http_client, base_url)


# -- answers


@pytest.mark.parametrize("path", [PATH, "/audio/transcriptions", "/v1/audio/translations"])
@pytest.mark.parametrize("parts", [GOOD, GOOD[::-1]], ids=["fields first", "file first"])
async def test_a_file_becomes_text(
    http: Http, gateway: Gateway, worker: FakeWorker, path: str, parts: tuple[Part, ...]
) -> None:
    """In either order; its bytes are the session's, unchanged, and nothing stays behind."""
    request = asyncio.ensure_future(http.call(path, form(*parts)))
    sid = await answer(gateway, worker, "hello", "world")
    response = await request
    assert (response.code, orjson.loads(response.body)) == (
        200,
        {"text": "hello world", "usage": {"type": "duration", "seconds": 2.0}},
    )
    assert b"".join((await worker.audio(sid, 1)).values()) == FILE
    await until(lambda: gateway.connections == 0)
    assert not gateway.sessions


@pytest.mark.parametrize(
    ("format", "media_type", "text"),
    [
        ("text", "text/plain", "hello world\n"),
        ("srt", "text/plain", "1\n00:00:00,100 --> 00:00:00,900\nhello\n\n2\n00:00:01,100 --> 00:00:01,900\nworld\n"),
        (
            "vtt",
            "text/vtt",
            "WEBVTT\n\n00:00:00.100 --> 00:00:00.900\nhello\n\n00:00:01.100 --> 00:00:01.900\nworld\n",
        ),
    ],
)
@pytest.mark.parametrize("slow", [False, True])
async def test_texts_are_no_json(
    http: Http,
    gateway: Gateway,
    worker: FakeWorker,
    monkeypatch: pytest.MonkeyPatch,
    format: str,
    media_type: str,
    text: str,
    slow: bool,
) -> None:
    """And the same whether the answer is begun before it is complete or not."""
    if slow:
        monkeypatch.setattr(long_answer, "BEGIN_SECONDS", 0.0)
        monkeypatch.setattr(long_answer, "KEEP_ALIVE_SECONDS", 0.01)
    request = asyncio.ensure_future(http.call(PATH, form(("response_format", format), *GOOD)))
    await answer(gateway, worker, "hello", "world")
    response = await request
    assert (response.code, response.headers["Content-Type"]) == (200, f"{media_type}; charset=utf-8")
    assert response.body.decode() == text
    assert ("Content-Length" in response.headers) is not slow


async def test_a_long_recognition_shows_signs_of_life(
    http: Http, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the JSON there are blanks; if it fails after them, the answer is cut off and not taken for whole."""
    monkeypatch.setattr(long_answer, "BEGIN_SECONDS", 0.01)
    monkeypatch.setattr(long_answer, "KEEP_ALIVE_SECONDS", 0.01)
    for fails in (False, True):  # in this order: the session that failed goes on by itself
        stream = await posted(http, form(*GOOD))
        head = await stream.read_until(b"\r\n\r\n")
        assert b" 200 " in head
        await stream.read_until(b" \r\n")
        await until(lambda: gateway.sessions)
        [sid] = gateway.sessions
        await worker.take(sid)
        if fails:
            await worker.say(sid, "error", code="recognition_failed", message="no")
            rest = await stream.read_until_close()
            assert not rest.endswith(b"0\r\n\r\n")
        else:
            await answer(gateway, worker, "hello", sid=sid)
            rest = await stream.read_until(b"0\r\n\r\n")
            assert b'{"text":"hello"' in rest
            stream.close()


async def test_a_streamed_answer(http: Http, gateway: Gateway, worker: FakeWorker) -> None:
    request = asyncio.ensure_future(http.call(PATH, form(("stream", "true"), *GOOD)))
    await answer(gateway, worker, "hello", "world")
    response = await request
    assert response.headers["Content-Type"].startswith("text/event-stream")
    events = response.body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert [orjson.loads(event.removeprefix("data: ")) for event in events[:-2]] == [
        {"type": "transcript.text.delta", "delta": "hello"},
        {"type": "transcript.text.delta", "delta": " world"},
        {"type": "transcript.text.done", "text": "hello world"},
    ]


@pytest.mark.parametrize("heard", [0, 1])
async def test_a_streamed_answer_that_fails(http: Http, gateway: Gateway, worker: FakeWorker, heard: int) -> None:
    """Before its first event the error is the answer; later it is an event."""
    request = asyncio.ensure_future(http.call(PATH, form(("stream", "true"), *GOOD)))
    await until(lambda: gateway.sessions)
    [sid] = gateway.sessions
    await worker.take(sid)
    for number in range(heard):
        await worker.say(sid, "segment", segments=[segment(number, "hello")])
    await worker.say(sid, "error", code="recognition_failed", message="it failed")
    response = await request
    assert response.code == (200 if heard else 500)
    last = orjson.loads(response.body.decode().strip().split("\n\n")[-1].removeprefix("data: "))
    assert (last["error"]["code"], last["error"]["message"]) == ("recognition_failed", "it failed")


async def test_fields_after_the_file_count(http: Http, gateway: Gateway, worker: FakeWorker) -> None:
    """The session that was begun without them gives way to another."""
    stream = await posted(http, form(*GOOD, ("language", "en"), ("prompt", "p")), 70_000)
    await until(lambda: gateway.sessions)
    [first] = gateway.sessions
    await stream.write(form(*GOOD, ("language", "en"), ("prompt", "p"))[70_000:])
    await until(lambda: len(gateway.sessions) == 2)
    [second] = gateway.sessions.keys() - {first}
    options = gateway.sessions[second].options
    assert (options.language, options.prompt) == ("en", "p")
    await answer(gateway, worker, "hello", sid=second)
    assert await worker.ended(first) == "interrupted"
    assert b'"hello"' in await stream.read_until(b'hello"')
    stream.close()


# -- uploads


@pytest.mark.parametrize("memory", [0, 1 << 20], ids=["disk", "memory"])
async def test_a_chunked_upload(
    http: Http, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, memory: int
) -> None:
    """As Node's streams send it, without a length, cut anywhere."""
    monkeypatch.setattr(spool, "MEMORY_BYTES", memory)
    host, port = http.url.removeprefix("http://").split(":")
    stream = await TCPClient().connect(host, int(port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: {host}\r\nContent-Type: {FORM}\r\nTransfer-Encoding: chunked\r\n\r\n"
    await stream.write(head.encode())
    body = form(*GOOD)
    for begin in range(0, len(body), 9973):
        piece = body[begin : begin + 9973]
        await stream.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
    await stream.write(b"0\r\n\r\n")
    sid = await answer(gateway, worker, "hello")
    assert b" 200 " in await stream.read_until(b"\r\n\r\n")
    assert b"".join((await worker.audio(sid, 2)).values()) == FILE
    stream.close()


@pytest.mark.parametrize("upto", [70_000, None], ids=["while it sends", "while it waits"])
async def test_who_leaves_cancels_the_request(
    http: Http, gateway: Gateway, worker: FakeWorker, upto: int | None
) -> None:
    stream = await posted(http, form(*GOOD), upto)
    await until(lambda: gateway.sessions)
    [sid] = gateway.sessions
    await worker.take(sid)
    assert gateway.connections == 1
    stream.close()
    await until(lambda: gateway.connections == 0)
    assert await worker.ended(sid) in ("interrupted", "done")  # done: all of it had been sent
    assert gateway.sessions[sid].send is None


async def test_who_sends_nothing_is_cut(http: Http, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload, "IDLE_SECONDS", 0.05)
    monkeypatch.setattr(upload, "CHECK_SECONDS", 0.05)
    stream = await posted(http, form(*GOOD), 1000)
    assert await stream.read_until_close() == b""
    await until(lambda: gateway.connections == 0)


@pytest.mark.parametrize("head", [AIFF, GSM], ids=["AIFF", "GSM in WAV"])
async def test_a_file_that_cannot_be_a_stream_is_one_chunk(
    http: Http, gateway: Gateway, worker: FakeWorker, head: bytes
) -> None:
    """Up to max_chunk bytes; both fields and file are read before it begins."""
    file = head + bytes(200_000)
    request = asyncio.ensure_future(http.call(PATH, form(MODEL, ("file", file))))
    await until(lambda: gateway.sessions)
    [sid] = gateway.sessions
    assert gateway.sessions[sid].options.mode == "chunk"
    await worker.take(sid)
    assert list((await worker.audio(sid, 1)).values()) == [file]
    await worker.say(sid, "chunk", "1-0", chunk_index=0, text="hello", segments=[segment(0, "hello")])
    await answer(gateway, worker, sid=sid)
    assert orjson.loads((await request).body)["usage"]["seconds"] == 2.0
    gateway.settings = replace(gateway.settings, max_chunk=100_000)
    assert (await http.error(400, PATH, form(MODEL, ("file", file))))["code"] == "not_streamable"


async def test_a_damaged_file_gives_what_it_has(http: Http, gateway: Gateway, worker: FakeWorker) -> None:
    for total, status in ((2.0, 200), (0.0, 400)):
        request = asyncio.ensure_future(http.call(PATH, form(*GOOD)))
        await until(lambda: gateway.sessions)
        [sid] = gateway.sessions
        await worker.take(sid)
        await worker.say(sid, "error", code="undecodable_audio", message="a page is damaged", chunk_index=0)
        await worker.ended(sid)
        await worker.say(sid, "final", text="", total=total)
        response = await request
        assert response.code == status
        assert total or orjson.loads(response.body)["error"]["code"] == "undecodable_audio"
        await until(lambda: not gateway.sessions)


# -- errors


@pytest.mark.parametrize(
    ("status", "code", "param", "body"),
    [
        (400, "bad_request", "model", form(("file", FILE))),
        (400, "bad_request", "model", form(("model", ""), ("file", FILE))),
        (400, "bad_request", "file", form(MODEL)),
        (400, "bad_request", "file", form(*GOOD, ("file", FILE))),
        (400, "bad_request", "response_format", form(*GOOD, ("response_format", "docx"))),
        (400, "bad_option", "language", form(*GOOD, ("language", "klingon"))),
        (400, "not_audio", None, form(MODEL, ("file", b""))),
        (400, "not_audio", None, form(MODEL, ("file", b"no audio at all " * 9))),
        (400, "not_audio", None, form(MODEL, ("file", bytes(99_999)))),
        (400, "bad_request", None, form(*GOOD)[:-30]),
        (400, "bad_request", None, b"no form"),
        (400, "bad_request", "prompt", form(("prompt", "p" * 70_000), *GOOD)),
        (404, "model_not_found", "model", form(("model", "nova-3"), ("file", FILE))),
    ],
)
async def test_a_bad_form(http: Http, gateway: Gateway, status: int, code: str, param: str | None, body: bytes) -> None:
    error = await http.error(status, PATH, body)
    assert (error["code"], error["param"], error["type"]) == (code, param, "invalid_request_error")
    await until(lambda: gateway.connections == 0)


@pytest.mark.parametrize(
    ("status", "path", "method"),
    [
        (404, "/v1", "GET"),
        (404, "/v1/chat/completions", "POST"),
        (404, "/v1/models/no/such", "GET"),
        (405, "/v1/models", "POST"),
        (405, PATH, "GET"),
        (405, PATH, "DELETE"),
    ],
)
async def test_every_path_has_openai_s_errors(http: Http, status: int, path: str, method: str) -> None:
    body = bytes(300_000) if method == "POST" else None  # more than the sockets hold: it must have been read
    error = await http.error(status, path, body, method)
    assert error["type"] == "invalid_request_error"


async def test_no_other_body_than_a_form(http: Http) -> None:
    error = await http.error(400, PATH, b"{}", Content_Type="application/json")
    assert "multipart/form-data" in error["message"]
    error = await http.error(400, PATH, b"{}", Content_Type="multipart/form-data")
    assert "boundary" in error["message"]


async def test_what_is_too_large(http: Http, gateway: Gateway) -> None:
    """With a length and without one; whoever asks first need not send it."""
    gateway.settings = replace(gateway.settings, max_upload=100_000)
    big = form(MODEL, ("file", FILE * 30))
    assert (await http.error(413, PATH, big))["code"] == "body_too_large"
    assert (await http.error(413, "/v1/models", bytes(2_000_000), "POST"))["code"] == "body_too_large"
    host, port = http.url.removeprefix("http://").split(":")
    stream = await TCPClient().connect(host, int(port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\nContent-Length: 9999999\r\n"
    await stream.write(f"{head}Expect: 100-continue\r\n\r\n".encode())
    assert b" 413 " in await stream.read_until(b"\r\n")
    stream.close()


@pytest.mark.parametrize("length", ["0\r\nContent-Length: 5", "x", "9" * 5000])
async def test_a_length_that_is_none(http: Http, length: str) -> None:
    """Beside Transfer-Encoding Tornado does not look at it."""
    host, port = http.url.removeprefix("http://").split(":")
    stream = await TCPClient().connect(host, int(port))
    head = f"POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: {FORM}\r\nContent-Length: {length}\r\n"
    await stream.write(f"{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n".encode())
    assert b" 400 " in await stream.read_until(b"\r\n")
    stream.close()


def _closing(gateway: Gateway) -> None:
    gateway.closing = True


def _full(gateway: Gateway) -> None:
    gateway.admission.limits._settings = replace(gateway.settings, max_sessions=1)
    gateway.sessions._starting["another"] = ""


def _busy(gateway: Gateway) -> None:
    gateway.admission.limits._settings = replace(gateway.settings, max_address_connections=1)
    gateway.admission.limits.connect("127.0.0.1")


@pytest.mark.parametrize(
    ("state", "status", "kind"),
    [(_closing, 503, "server_error"), (_full, 503, "server_error"), (_busy, 429, "rate_limit_error")],
)
async def test_not_now(http: Http, gateway: Gateway, state: Callable[[Gateway], None], status: int, kind: str) -> None:
    """With the time after which to try again; the body is read, or the client would see a broken connection."""
    state(gateway)
    error = await http.error(status, PATH, form(MODEL, ("file", FILE * 30)))
    assert error["type"] == kind
    assert int(error["retry_after"]) >= 1


async def test_a_wrong_key(http: Http, gateway: Gateway) -> None:
    gateway.access = Access(api_keys=f"app:{GIVEN}")
    for authorization in ("", "Bearer wrong", "Basic abc"):
        error = await http.error(401, PATH, form(MODEL, ("file", FILE * 30)), Authorization=authorization)
        assert (error["code"], error["type"]) == ("invalid_api_key", "invalid_request_error")
        assert (await http.error(401, "/v1/models", Authorization=authorization))["code"] == "invalid_api_key"
    for scheme in ("Bearer", "bearer", "Token", "token"):
        assert (await http.call("/v1/models", Authorization=f"{scheme} {GIVEN}")).code == 200
    assert (await http.call("/v1/models", Authorization=GIVEN)).code == 200


async def test_pages_of_allowed_origins_may_send_any_header(http: Http, gateway: Gateway) -> None:
    gateway.access = Access(api_keys=f"app:{GIVEN}", origins="app://obsidian.md")
    asked = {
        "Origin": "app://obsidian.md",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization, x-stainless-lang,x-stainless-retry-count, b\u00e4d",
    }
    response = await http.call(PATH, None, "OPTIONS", **asked)
    assert response.code == 204
    allowed = response.headers["Access-Control-Allow-Headers"].lower()
    assert "authorization" in allowed
    assert "x-stainless-retry-count" in allowed
    assert response.headers["Access-Control-Allow-Origin"] == "app://obsidian.md"


# -- models


async def test_models(http: Http, gateway: Gateway, worker: FakeWorker) -> None:
    base = {"name": "base", "loaded": True, "compute_type": "int8", "size_bytes": 7, "languages": [], "sessions": 0}
    worker.broker.heartbeat({"model": "base", "languages": [], "models": [base]})
    await worker.broker.pipeline.drain()
    await gateway.offers.refresh()
    gateway.offers.aliases = {"ours": "", "theirs": "base"}
    body = orjson.loads((await http.call("/v1/models")).body)
    assert body["object"] == "list"
    assert [one["id"] for one in body["data"]] == ["base", "ours", "theirs", "whisper-1"]
    for name in ("base", "whisper-1", "gpt-4o-transcribe", "openai/whisper-base", "openai%2Fwhisper-base"):
        found = orjson.loads((await http.call(f"/v1/models/{name}")).body)
        assert found["object"] == "model"
        assert isinstance(found["created"], int)
        assert found["owned_by"]


# -- /api/v1/transcribe


@pytest.mark.parametrize(
    ("query", "headers", "text"),
    [
        ("?format=txt&language=en-US", {}, "hello world\n"),
        ("", {"Accept": "text/plain"}, "hello world\n"),
        ("?format=vtt", {"Accept": "application/json"}, None),
        ("", {"Accept": "text/html, text/vtt;q=0.5"}, None),
    ],
)
@pytest.mark.parametrize("raw", [True, False])
async def test_a_file_as_the_body(
    http: Http,
    gateway: Gateway,
    worker: FakeWorker,
    query: str,
    headers: dict[str, str],
    text: str | None,
    raw: bool,
) -> None:
    body = FILE if raw else form(("file", FILE))
    sent = headers | ({"Content-Type": "audio/ogg"} if raw else {})
    request = asyncio.ensure_future(http.call("/api/v1/transcribe" + query, body, **sent))
    sid = await answer(gateway, worker, "hello", "world")
    response = await request
    assert response.code == 200, response.body
    assert response.body.decode() == text if text else response.body.startswith(b"WEBVTT\n\n00:00:00.100 --> ")
    assert b"".join((await worker.audio(sid, 1)).values()) == FILE


@pytest.mark.parametrize("query", ["?format=ndjson&words=true", ""])
async def test_its_lines_come_as_they_are_final(http: Http, gateway: Gateway, worker: FakeWorker, query: str) -> None:
    """As messages of the WebSocket; what fails after the first one is a line too."""
    path, accept = "/api/v1/transcribe", "application/x-ndjson"
    request = asyncio.ensure_future(http.call(path + query, FILE, Content_Type="audio/ogg", Accept=accept))
    sid = await answer(gateway, worker, "hello", "world")
    response = await request
    assert response.headers["Content-Type"] == accept
    *segments, final = map(orjson.loads, response.body.splitlines())
    assert [(one["type"], one["text"]) for one in segments] == [
        ("segment_result", "hello"),
        ("segment_result", "world"),
    ]
    assert {"type": "final_result", "session_id": sid, "text": "hello world"}.items() <= final.items()
    request = asyncio.ensure_future(http.call(path + query, FILE, Content_Type="audio/ogg", Accept=accept))
    await until(lambda: gateway.sessions)
    [sid] = gateway.sessions
    await worker.take(sid)
    await worker.say(sid, "segment", text="hello", segments=[segment(0, "hello")])
    await worker.say(sid, "error", code="recognition_failed", message="no")
    first, last = map(orjson.loads, (await request).body.splitlines())
    assert (first["text"], last) == ("hello", {"type": "error", "code": "recognition_failed", "message": "no"})


async def test_its_json_has_the_segments_and_the_session(http: Http, gateway: Gateway, worker: FakeWorker) -> None:
    request = asyncio.ensure_future(http.call("/api/v1/transcribe?words=true&user_id=me", FILE, Content_Type="a/b"))
    sid = await answer(gateway, worker, "hello", "world")
    body = orjson.loads((await request).body)
    assert (body["session_id"], body["text"], body["duration"], body["language"]) == (sid, "hello world", 2.0, "en")
    assert [one["text"] for one in body["segments"]] == ["hello", "world"]
    assert body["segments"][0]["words"] == [{"word": "hello", "start": 0.1, "end": 0.9, "confidence": 0.9}]


@pytest.mark.parametrize(
    ("query", "code", "name"),
    [
        ("?lang=en", "unknown_option", "language"),
        ("?format=docx", "bad_request", "format"),
        ("?words=1", "bad_request", "words"),
        ("?language=klingon", "bad_option", "language"),
        ("?task=dance", "bad_option", "task"),
        ("?user_id=a%20b", "bad_id", "user_id"),
        ("?model=" + "m" * 1001, "bad_option", "model"),
    ],
)
async def test_its_errors_are_those_of_rest(http: Http, query: str, code: str, name: str) -> None:
    response = await http.call("/api/v1/transcribe" + query, FILE, Content_Type="audio/ogg")
    assert response.code == 400
    error = orjson.loads(response.body)["error"]
    assert error["code"] == code
    assert name in error["message"]
