"""handlers/rest.py: what REST says is true, and its errors are JSON."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import orjson
import psycopg2
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from asrserver.config import Settings
from asrserver.gateway import Gateway
from asrserver.session import Session
from tests.conftest import Servers, until
from tests.pretend import Pretender

pytestmark = pytest.mark.gen_test(timeout=60)


class Api:
    """Requests, and what is in their answers."""

    def __init__(self, client: AsyncHTTPClient, url: str) -> None:
        self._client = client
        self._url = url

    async def fetch(self, path: str, method: str = "GET", **options: Any) -> HTTPResponse:
        return await self._client.fetch(
            self._url + path, method=method, raise_error=False, allow_nonstandard_methods=True, **options
        )

    async def call(self, path: str, method: str = "GET") -> tuple[int, Any]:
        """(status, body); every answer is JSON."""
        response = await self.fetch("/api/v1" + path, method)
        assert response.headers["Content-Type"].startswith("application/json")
        return response.code, orjson.loads(response.body)


@pytest.fixture
def api(http_client: AsyncHTTPClient, base_url: str) -> Api:
    return Api(http_client, base_url)


async def session(gateway: Gateway, sid: str = "s", **message: Any) -> tuple[Session, list[dict[str, Any]]]:
    """A session that is open, and what its client gets."""
    got: list[dict[str, Any]] = []
    return await gateway.start({"session_id": sid, **message}, got.append), got


async def whole_session(gateway: Gateway, worker: Pretender, sid: str, text: str = "hello world") -> None:
    """A session of one chunk, from start to stored."""
    opened, got = await session(gateway, sid, user_id="somebody")
    gateway.append(opened, 0, b"audio", True)
    gateway.finish(opened)
    await worker.take(sid)
    segment = {
        "number": 0,
        "start": 0.1,
        "end": 1.4,
        "text": text,
        "language": "en",
        "confidence": 0.9,
        "chunk_index": 0,
    }
    await worker.audio(sid, 1)
    await worker.say(sid, "chunk", "1-0", chunk_index=0, text=text, duration=1.5, segments=[segment])
    await worker.final(sid, text)
    await until(lambda: got and got[-1]["type"] == "final")
    await until(gateway.recorder.settled)


# -- health


async def test_health_is_true(api: Api, worker: Pretender) -> None:
    """503 until a worker lives; then all of it, with numbers."""
    status, body = await api.call("/health")
    assert (status, body["status"]) == (503, "degraded")
    ready = {"redis_ready": True, "postgres_ready": True, "workers_ready": False, "funasr_ready": False}
    assert ready.items() <= body.items()
    await worker.broker.open()
    worker.broker.beat("worker", {"backlog": 0.0})
    await worker.broker.lane.drain()
    status, body = await api.call("/health")
    assert (status, body["status"], body["workers_ready"], body["funasr_ready"]) == (200, "ok", True, True)
    assert [found["name"] for found in body["workers"]] == ["pretender"]
    assert len(body["gateways"]) == 1
    assert body["queue"] == {"waiting": 0, "processing": 0, "dead": 0}
    assert body["redis"]["latency_ms"] > 0
    assert body["postgres"]["latency_ms"] > 0


async def test_health_while_redis_does_not_answer(api: Api, servers: Servers) -> None:
    """Stopped, not gone: it says so in seconds, and recovers."""
    pid = servers.redis.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        status, body = await api.call("/health")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (status, body["redis_ready"], body["postgres_ready"], body["workers_ready"]) == (503, False, True, False)
    assert body["redis"]["error"]

    async def recovered() -> bool:
        return bool((await api.call("/health"))[1]["redis_ready"])

    while not await recovered():
        await asyncio.sleep(0.02)


async def test_health_while_postgresql_is_away(api: Api, gateway: Gateway) -> None:
    await gateway.storage.close()
    status, body = await api.call("/health")
    assert (status, body["redis_ready"], body["postgres_ready"]) == (503, True, False)
    assert body["postgres"]["error"]
    status, body = await api.call("/history")
    assert (status, body["error"]["code"]) == (503, "storage_unavailable")
    await gateway.storage.open()
    assert (await api.call("/health"))[1]["postgres_ready"]


# -- history and sessions


async def test_history_and_one_session(api: Api, gateway: Gateway, worker: Pretender) -> None:
    """Newest first; a session with its chunks and segments."""
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


@pytest.mark.parametrize("limit", ["0", "-1", "1001", "x", "", "1.5", "%C2%B2", "99999999999999", "1e2", "%ff"])
async def test_a_bad_limit(api: Api, limit: str) -> None:
    status, body = await api.call(f"/history?limit={limit}")
    assert (status, body["error"]["code"]) == (400, "bad_request")


async def test_an_id_of_any_signs(api: Api, gateway: Gateway, worker: Pretender) -> None:
    sid = "a/ü?%#"
    await whole_session(gateway, worker, sid)
    assert (await api.call("/session/a%2F%C3%BC%3F%25%23"))[1]["session_id"] == sid


async def test_a_deleted_session_is_gone(api: Api, gateway: Gateway, worker: Pretender) -> None:
    """And cannot be deleted again, nor started."""
    await whole_session(gateway, worker, "s")
    assert await api.call("/session/s", "DELETE") == (200, {"session_id": "s", "deleted": True})
    assert (await api.call("/session/s"))[0] == 404
    assert (await api.call("/session/s", "DELETE"))[0] == 404
    assert (await api.call("/history"))[1]["total"] == 0


async def test_a_session_deleted_while_it_is_open_never_comes_back(
    api: Api, gateway: Gateway, worker: Pretender, gateway_settings: Settings
) -> None:
    """Its client still gets its results; of what is written later, nothing is kept."""
    opened, got = await session(gateway)
    gateway.append(opened, 0, b"audio", True)
    assert (await api.call("/session/s", "DELETE"))[0] == 200
    gateway.finish(opened)
    await worker.take("s")
    await worker.chunk("s", 0, "secret")
    await worker.final("s", "secret")
    await until(lambda: got and got[-1]["type"] == "final")
    await until(gateway.recorder.settled)
    assert (await api.call("/session/s"))[0] == 404
    with psycopg2.connect(gateway_settings.database) as connection, connection.cursor() as cursor:
        for table in ("asr_sessions", "asr_chunks", "asr_segments"):
            cursor.execute(f"SELECT count(*) FROM {table}")
            assert cursor.fetchone() == (0,)
    connection.close()


# -- what is not there


@pytest.mark.parametrize(
    ("path", "method", "status", "code"),
    [
        ("/nothing", "GET", 404, "not_found"),
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


async def test_what_is_no_websocket(api: Api) -> None:
    assert (await api.fetch("/ws/asr")).code == 400
