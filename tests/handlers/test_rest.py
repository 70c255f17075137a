"""handlers/rest.py: answers are true, and errors are JSON."""

from __future__ import annotations

import os
import re
import signal
import time
from dataclasses import replace

import orjson
import psycopg2
import pytest
import redis
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from asrserver.config import Settings
from asrserver.errors import BadRequest, Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.protocol.events import Final
from tests.fakes import FakeWorker
from tests.gateways import offer
from tests.handlers.api import Api, session, whole_session
from tests.servers import Servers
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)


# -- history and sessions


async def test_history_and_one_session(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    """The newest session is first; a session has its chunks and segments."""
    for sid in ("one", "two", "three"):
        await whole_session(gateway, worker, sid, sid)
    status, body = await api.call("/history?limit=2")
    assert (status, body["total"]) == (200, 3)
    assert [found["session_id"] for found in body["records"]] == ["three", "two"]
    assert {"session_id", "text", "duration", "chunk_count", "created_at"} <= body["records"][0].keys()
    status, body = await api.call("/session/one")
    assert (status, body["status"], body["text"], body["user_id"]) == (200, "done", "one", "somebody")
    assert [(found["chunk_index"], found["text"]) for found in body["chunks"]] == [(0, "one")]
    assert [(found["number"], found["text"]) for found in body["segments"]] == [(0, "one")]


async def test_an_open_session_is_in_the_history(api: Api, gateway: Gateway) -> None:
    await session(gateway)
    status, body = await api.call("/session/s")
    assert (status, body["status"]) == (200, "recording")


WRONG = (
    "limit=0 limit=-1 limit=1001 limit=x limit= limit=1.5 limit=%C2%B2 limit=99999999999999 limit=1e2 limit=%ff"
    " limit=1&limit=x status=finished status= from=yesterday to=2026-13-01 to=20260101 from= cursor=x cursor= q= q=%ff"
    f" user_id= user_id=%c3 q={'x' * 201} user_id={'x' * 129} from=0001-01-01T00:00:00%2B23:59"
    " to=9999-12-31T23:59:59-23:59"
).split()


async def test_a_wrong_parameter_is_named(api: Api) -> None:
    for query in WRONG:
        status, body = await api.call(f"/history?{query}")
        name = query.partition("=")[0]
        assert (status, body["error"]["code"], body["error"]["parameter"]) == (400, "bad_request", name), query
        assert name in body["error"]["message"]


async def test_an_unknown_parameter_is_refused(api: Api) -> None:
    """It may be misspelt. Monitoring endpoints accept it: monitoring may add its own."""
    for path, method, hint in (
        ("/history", "GET", "did you mean limit?"),
        ("/session/s", "GET", "allowed: format"),
        ("/session/s", "DELETE", "allowed: none"),
        ("/session/s/audio", "GET", "allowed: none"),
        ("/health", "HEAD", ""),
        ("/stats", "GET", "allowed: none"),
    ):
        response = await api.fetch(f"/api/v1{path}?limt=5", method)
        assert response.code == 400
        if method != "HEAD":
            error = orjson.loads(response.body)["error"]
            assert (error["code"], error["parameter"]) == ("unknown_option", "limt")
            assert error["message"] == f"'limt' is unknown ({hint})"
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await api.fetch(f"{path}?_=1")).code == 200


async def test_history_is_filtered_and_paged(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    for number, text in enumerate(("the kitchen light", "今天的天气", "the garden light")):
        await whole_session(gateway, worker, f"s{number}", text)
    await session(gateway, "open", user_id="another")
    await until(gateway.write_behind.is_flushed)

    async def found(query: str) -> list[str]:
        status, body = await api.call(f"/history?{query}")
        assert status == 200
        assert body["total"] == len(body["records"])
        return [record["session_id"] for record in body["records"]]

    assert await found("user_id=somebody&status=done") == ["s2", "s1", "s0"]
    assert await found("status=recording") == ["open"]
    assert await found("q=light+-garden") == ["s0"]
    assert await found("q=%E5%A4%A9%E6%B0%94") == ["s1"]
    created = (await api.call("/session/s1"))[1]["created_at"].replace("+", "%2B")
    assert await found(f"from={created}") == ["open", "s2", "s1"]
    assert await found(f"to={created}") == ["s0"]
    assert await found(f"from={created.replace('%2B', '+')}&to=2999-01-01") == ["open", "s2", "s1"]
    assert await found("to=2020-01-01T00:00:00Z") == []
    _, first = await api.call("/history?limit=3")
    _, second = await api.call(f"/history?limit=3&cursor={first['cursor']}")
    assert [len(first["records"]), [r["session_id"] for r in second["records"]], second["cursor"]] == [3, ["s0"], None]


async def test_a_session_as_text_and_as_subtitles(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    await whole_session(gateway, worker, "s", "5 < 6 --> & more")
    cue = "00:00:00{}100 --> 00:00:01{}400\n"
    for kind, media, text in (
        ("txt", "text/plain", "5 < 6 --> & more\n"),
        ("srt", "application/x-subrip", "1\n" + cue.format(",", ",") + "5 < 6 --> & more\n"),
        ("vtt", "text/vtt", "WEBVTT\n\n" + cue.format(".", ".") + "5 &lt; 6 --&gt; &amp; more\n"),
    ):
        response = await api.fetch(f"/api/v1/session/s?format={kind}")
        assert (response.code, response.headers["Content-Type"]) == (200, f"{media}; charset=utf-8")
        assert response.body.decode() == text
    assert (await api.call("/session/s?format=json"))[1]["text"] == "5 < 6 --> & more"
    status, body = await api.call("/session/s?format=pdf")
    assert (status, body["error"]["parameter"]) == (400, "format")
    assert (await api.call("/session/unknown?format=srt"))[0] == 404


async def test_an_id_of_any_signs(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    sid = "a/ü?%#"
    await whole_session(gateway, worker, sid)
    assert (await api.call("/session/a%2F%C3%BC%3F%25%23"))[1]["session_id"] == sid


async def test_a_deleted_session_is_gone(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    """It can be neither deleted again nor started."""
    await whole_session(gateway, worker, "s")
    assert await api.call("/session/s", "DELETE") == (200, {"session_id": "s", "deleted": True})
    assert (await api.call("/session/s"))[0] == 404
    assert (await api.call("/session/s", "DELETE"))[0] == 404
    assert (await api.call("/history"))[1]["total"] == 0


def redis_keys(settings: Settings, sid: str) -> list[bytes | str]:
    client = redis.Redis.from_url(settings.redis_url)
    try:
        return client.keys(f"asr_*:{{{sid}}}")
    finally:
        client.close()


async def test_what_redis_has_of_a_deleted_session_goes_too(
    api: Api, gateway: Gateway, worker: FakeWorker, gateway_settings: Settings
) -> None:
    """It goes at once; later messages of its client or worker have no effect."""
    await whole_session(gateway, worker, "s")
    assert len(redis_keys(gateway_settings, "s")) == 4
    assert (await api.call("/session/s", "DELETE"))[0] == 200
    assert redis_keys(gateway_settings, "s") == []
    with pytest.raises(BadRequest, match="already in use"):
        await session(gateway, "s")


async def test_a_session_that_another_gateway_has_open_can_be_deleted(
    api: Api, gateway: Gateway, worker: FakeWorker, gateway_settings: Settings
) -> None:
    """Nothing of it is stored yet, and what comes later is not kept."""
    other = Gateway(gateway_settings)
    await other.open()
    other.storage._closed = True  # PostgreSQL is away from there
    other.storage._stale = True
    opened, _ = await session(other, "s")
    assert (await api.call("/session/s", "DELETE"))[0] == 200
    other.storage._closed = False
    offer(other, opened, b"audio", 0)
    other.finish(opened)
    await worker.take("s")
    await worker.chunk("s", 0, "secret")
    await worker.final("s", "secret")
    await until(lambda: not redis_keys(gateway_settings, "s"))
    assert (await api.call("/session/s"))[0] == 404
    await other.close()


async def test_what_was_deleted_long_ago_is_forgotten(
    gateway: Gateway, worker: FakeWorker, gateway_settings: Settings
) -> None:
    """Unless Redis still has some of it."""
    await whole_session(gateway, worker, "old")
    await session(gateway, "open")
    for sid in ("old", "open", "new"):
        await gateway.storage.delete(sid, pending=True)
    await gateway.broker.delete_session("old", None)
    with psycopg2.connect(gateway_settings.database) as connection, connection.cursor() as cursor:
        cursor.execute(
            "UPDATE asr_tombstones SET deleted_at = now() - interval '31 days' WHERE session_id IN ('old', 'open')"
        )
    connection.close()
    await gateway._tidy()
    assert [await gateway.storage.known(sid) for sid in ("old", "open", "new")] == [False, True, True]


async def test_a_session_deleted_while_it_is_open_never_comes_back(
    api: Api, gateway: Gateway, worker: FakeWorker, gateway_settings: Settings
) -> None:
    """Its client still gets its results; what is written later is not kept."""
    opened, got = await session(gateway)
    offer(gateway, opened, b"audio", 0)
    assert (await api.call("/session/s", "DELETE"))[0] == 200
    gateway.finish(opened)
    await worker.take("s")
    await worker.chunk("s", 0, "secret")
    await worker.final("s", "secret")
    await until(lambda: got and isinstance(got[-1], Final))
    await until(gateway.write_behind.is_flushed)
    assert (await api.call("/session/s"))[0] == 404
    with psycopg2.connect(gateway_settings.database) as connection, connection.cursor() as cursor:
        for table in ("asr_sessions", "asr_chunks", "asr_segments"):
            cursor.execute(f"SELECT count(*) FROM {table}")
            assert cursor.fetchone() == (0,)
    connection.close()


# -- what is not there


async def test_why_a_session_is_missing(
    api: Api, gateway: Gateway, worker: FakeWorker, gateway_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator at night need not look into the tables: it was deleted, it could not be stored, or never was."""

    async def why(sid: str) -> str:
        status, body = await api.call(f"/session/{sid}")
        assert (status, body["error"]["code"]) == (404, "not_found")
        return str(body["error"]["message"])

    for sid in ("deleted", "unstored"):
        await whole_session(gateway, worker, sid)
    await api.call("/session/deleted", "DELETE")
    with psycopg2.connect(gateway_settings.database) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM asr_sessions WHERE id = 'unstored'")
    connection.close()
    assert re.match(r"the session was deleted at 20\d\d-\d\d-\d\dT", await why("deleted"))
    assert "in Redis, but not stored" in await why("unstored")
    assert "GET /api/v1/history" in await why("misspelt")

    async def no_answer(_sids: object) -> set[str]:
        raise Unavailable("broker_unavailable", "Redis cannot be reached")

    monkeypatch.setattr(gateway.broker, "known", no_answer)
    assert "Redis does not say" in await why("misspelt")


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/nothing", "GET", 404, "not_found"),
        ("/asr/result/s", "GET", 404, "not_found"),  # only with --kikipounamu
        ("/session/unknown", "GET", 404, "not_found"),
        ("/session/unknown", "DELETE", 404, "not_found"),
        ("/session/%00", "GET", 404, "not_found"),
        ("/session/%ff", "GET", 400, "bad_request"),
        ("/session/", "GET", 404, "not_found"),
        ("/health", "POST", 405, "method_not_allowed"),
        ("/history", "DELETE", 405, "method_not_allowed"),
        ("/session/s", "PUT", 405, "method_not_allowed"),
    ],
)
async def test_refusals_are_json(api: Api, path: str, method: str, status: int, code: str) -> None:
    found, body = await api.call(path, method)
    assert (found, body["error"]["code"]) == (status, code)
    assert body["error"]["message"]


async def test_a_server_that_keeps_no_recordings_says_so(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    await whole_session(gateway, worker, "s")
    status, body = await api.call("/session/s/audio")
    assert status == 404
    assert body["error"]["message"].endswith("this server keeps none (--save-audio)")


async def test_who_sends_a_file_to_a_misspelt_path_is_told_so(api: Api) -> None:
    """Without a word, the connection was cut: the body is larger than any that other routes take."""
    response = await api.fetch("/api/v1/transcrib", "POST", body=bytes(1 << 20))
    assert response.code == 404
    assert "GET /docs" in orjson.loads(response.body)["error"]["message"]


async def test_a_wrong_method_is_told_the_right_ones(api: Api) -> None:
    for path, allowed in (
        ("/api/v1/history", "GET, HEAD, OPTIONS"),
        ("/api/v1/session/s", "DELETE, GET, HEAD, OPTIONS"),
        ("/livez", "GET, HEAD, OPTIONS"),
        ("/ws/asr", "GET, OPTIONS"),
    ):
        for method in ("PUT", "POST", "PATCH", "TRACE"):
            response = await api.fetch(path, method)
            assert (response.code, response.headers["Allow"]) == (405, allowed)
            error = orjson.loads(response.body)["error"]
            message = f"{method} is not possible here, only {allowed}"
            assert (error["code"], error["message"]) == ("method_not_allowed", message)


async def test_head_is_get_without_a_body(api: Api) -> None:
    response = await api.fetch("/api/v1/history", "HEAD")
    assert (response.code, response.body) == (200, b"")
    assert int(response.headers["Content-Length"]) > 0


async def test_what_is_no_websocket(api: Api) -> None:
    response = await api.fetch("/ws/asr")
    assert (response.code, orjson.loads(response.body)["error"]["code"]) == (400, "bad_request")


async def test_every_answer_has_a_request_id(api: Api) -> None:
    """It is the client's, if that can stand in a header and in a log line."""
    for path in ("/livez", "/api/v1/session/unknown", "/nothing"):
        for given in ("abc-123.X_y", "x" * 128):
            assert (await api.fetch(path, headers={"X-Request-ID": given})).headers["X-Request-ID"] == given
        for given in ("x" * 129, "a b", "a,b", '"', ""):
            found = (await api.fetch(path, headers={"X-Request-ID": given})).headers["X-Request-ID"]
            assert len(found) == 32


# -- what an operator asks


async def test_alive_and_ready(api: Api, gateway: Gateway, servers: Servers) -> None:
    """Always alive; ready while it accepts sessions, with or without PostgreSQL."""
    await gateway.storage.close()
    assert (await api.fetch("/livez")).code == (await api.fetch("/readyz")).code == 200
    pid = servers.redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        response = await api.fetch("/readyz")
        assert (response.code, (await api.fetch("/livez")).code) == (503, 200)
        assert orjson.loads(response.body)["reason"] == "Redis does not answer"  # and not where it is
        for path in ("/stats", "/asr/queue/status"):
            status, body = await api.call(path)
            assert (status, body["error"]["code"]) == (503, "broker_unavailable")
    finally:
        os.kill(pid, signal.SIGCONT)
    gateway.closing = True
    response = await api.fetch("/readyz")
    assert (response.code, orjson.loads(response.body)["reason"]) == (503, "shutting down")
    assert (await api.fetch("/livez")).code == 200


async def test_stats(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    await worker.broker.open()
    worker.broker.heartbeat({"speech_seconds": 100.0, "real_time_factor": 0.25})
    await whole_session(gateway, worker, "a")
    await whole_session(gateway, worker, "b")
    await session(gateway, "c")
    await until(gateway.write_behind.is_flushed)
    status, body = await api.call("/stats")
    assert (status, body["total_tasks"], body["total_duration"], body["avg_rtf"]) == (200, 3, 3.0, 0.25)
    assert body["sessions"] == {"recording": 1, "done": 2, "interrupted": 0, "error": 0}
    assert body["storage_used"] == body["storage"]["database"] > 10_000


async def test_queue_status(api: Api, gateway: Gateway, worker: FakeWorker) -> None:
    """Waiting sessions and waiting audio, of this gateway and of others."""
    status, body = await api.call("/asr/queue/status")
    ancestor = {"queued": 0, "processing": 0, "failed": 0, "workers": 0, "workers_busy": 0}
    assert status == 200
    assert ancestor.items() <= body.items()
    assert body["backlog_seconds"] == body["oldest_waiting_seconds"] == 0.0
    for sid in ("a", "b"):
        opened, got = await session(gateway, sid)
        offer(gateway, opened, bytes(32000 * 5), 0)
    gateway.broker.pipeline.call(
        print, "SET", "gateway:other:heartbeat", b'{"name":"other","backlog":7.5,"oldest_waiting":99}'
    )
    gateway.broker.pipeline.call(print, "ZADD", "asr_alive:gateway", time.time(), "other")
    await gateway.broker.pipeline.drain()
    _, body = await api.call("/asr/queue/status")
    assert (body["queued"], body["backlog_seconds"], body["sessions"]) == (2, 17.5, 2)
    assert body["oldest_waiting_seconds"] == 99
    await worker.take("a", "b")
    worker.broker.heartbeat({"backlog": 5.0, "queue": 1})
    await worker.say("a", "chunk", "1-0", chunk_index=0, text="", duration=5.0, total=5.0)
    await until(lambda: got or gateway.sessions.backlog.seconds == 5.0)
    await worker.broker.pipeline.drain()
    _, body = await api.call("/asr/queue/status")
    assert (body["queued"], body["processing"], body["workers"], body["workers_busy"]) == (0, 2, 1, 1)
    await until(lambda: gateway.sessions.backlog.seconds == 5.0)
    gateway.abandon(opened)


class Other(RequestHandler):
    """A server that FUNASR_ADDR may name."""

    def get(self, path: str) -> None:
        if path == "stats":
            self.finish({"total_tasks": 7})
        else:
            self.finish("<html>")


async def test_another_server_answers_in_this_ones_place(api: Api, gateway: Gateway) -> None:
    server = HTTPServer(Application([(r"/api/v1/(.*)", Other)]))
    (sock,) = bind_sockets(0, "127.0.0.1")
    server.add_socket(sock)
    address = f"127.0.0.1:{sock.getsockname()[1]}"
    gateway.settings = replace(gateway.settings, funasr_addr=address)
    assert await api.call("/stats") == (200, {"total_tasks": 7})
    for _ in range(2):
        status, body = await api.call("/asr/queue/status")
        assert (status, body["error"]["code"]) == (502, "bad_gateway")
        assert "FUNASR_ADDR" in body["error"]["message"]
        server.stop()  # the second time nobody listens
    assert (await api.call("/stats"))[0] == 502
    await server.close_all_connections()
