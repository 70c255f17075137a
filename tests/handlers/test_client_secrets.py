"""Client secrets: made for a key, good for recognition alone, and no longer than they or their key are valid."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
import redis
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.websocket import WebSocketClientConnection, websocket_connect

from asrserver.auth.access import Access
from asrserver.broker import client_secrets
from asrserver.config import Settings
from asrserver.gateway import gateway as gateway_module
from asrserver.gateway.gateway import Gateway
from tests.api_keys import Keys
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)

PATH = "/v1/realtime/client_secrets"


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setattr(gateway_module, "FILES_EVERY", 0.05)
    return Settings(redis_url=redis_url, database_url=database_url, keys_file=str(keys.path))


@pytest.fixture
def fetch(base_url: str, http_server: HTTPServer, http_client: AsyncHTTPClient) -> Callable[..., Any]:
    async def send(path: str, key: str = "", body: Any = None, method: str = "GET") -> HTTPResponse:
        return await http_client.fetch(
            base_url + path,
            method="POST" if body is not None else method,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            body=None if body is None else body if isinstance(body, bytes) else orjson.dumps(body),
            raise_error=False,
        )

    return send


@pytest.fixture
def connect(base_url: str, http_server: HTTPServer) -> Callable[..., Any]:
    async def opened(path: str, **headers: str) -> WebSocketClientConnection:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        return await websocket_connect(HTTPRequest(base_url.replace("http", "ws", 1) + path, headers=names))

    return opened


async def made(fetch: Callable[..., Any], key: str, **asked: Any) -> dict[str, Any]:
    response = await fetch(PATH, key, asked)
    assert response.code == 200, response.body
    answer: dict[str, Any] = orjson.loads(response.body)
    return answer


async def test_what_a_secret_opens(
    fetch: Callable[..., Any], connect: Callable[..., Any], gateway: Gateway, keys: Keys, redis_url: str
) -> None:
    """Recognition, in the name of its key. Redis does not have the secret itself."""
    asked = {"type": "transcription", "audio": {"input": {"transcription": {"language": "de"}}}}
    answer = await made(fetch, keys.text_a, session=asked, expires_after={"anchor": "created_at", "seconds": 60})
    secret = answer["value"]
    assert secret.startswith("ek_")
    assert answer["expires_at"] == pytest.approx(time.time() + 60, abs=5)
    assert answer["session"]["audio"]["input"]["transcription"]["language"] == "de"
    live = await connect("/v1/realtime", Sec_WebSocket_Protocol=f"realtime, openai-insecure-api-key.{secret}")
    created = json.loads(await live.read_message())["session"]
    assert created["audio"] == answer["session"]["audio"]
    native = await connect("/ws/asr", Sec_WebSocket_Protocol=f"asr.v1, bearer.{secret}")
    await native.write_message('{"action": "start", "session_id": "s"}')
    assert json.loads(await native.read_message())["status"] == "session_started"
    assert gateway.sessions["s"].owner == keys.a.id
    assert (await fetch("/v1/models", secret)).code == 200
    for path in ("/api/v1/transcribe", "/v1/audio/transcriptions"):
        assert (await fetch(path, secret, b"x")).code == 400
    for path in ("/api/v1/history", "/api/v1/session/s", "/api/v1/stats", "/api/v1/health", "/metrics"):
        assert (await fetch(path, secret)).code == 401
    assert (await fetch("/api/v1/session/s", secret, method="DELETE")).code == 401
    assert (await fetch(PATH, secret, {})).code == 401
    client = redis.Redis.from_url(redis_url, decode_responses=True)
    with client:
        for key in client.scan_iter("asr_secret*"):
            assert secret[3:] not in f"{key} {client.dump(key)!r}" if client.type(key) == "zset" else client.get(key)
            assert 0 < client.ttl(key) <= 60
        client.delete(*client.scan_iter("asr_secret:*"))  # as when it expires
    with pytest.raises(HTTPClientError, match="401"):
        await connect("/v1/realtime", Authorization=f"Bearer {secret}")
    keys.file.revoke(keys.a.id)
    for connection in (live, native):
        while await connection.read_message() is not None:
            pass
        assert connection.close_code == 1008
        connection.close()


async def test_a_secret_ends_with_its_key(
    fetch: Callable[..., Any], connect: Callable[..., Any], gateway: Gateway, keys: Keys
) -> None:
    secret = (await made(fetch, keys.text_a))["value"]
    keys.file.revoke(keys.a.id)
    await until(lambda: gateway.access.key(keys.a.id) is None)
    for path in ("/v1/realtime", "/ws/asr", f"/ws/asr?token={secret}"):
        with pytest.raises(HTTPClientError, match="401"):
            await connect(path, Authorization=f"Bearer {secret}")


async def test_a_key_has_so_many(
    fetch: Callable[..., Any], gateway: Gateway, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_secrets, "MAX_SECRETS", 2)
    await made(fetch, keys.text_a)
    await made(fetch, keys.text_a, expires_after={"seconds": 10})
    response = await fetch(PATH, keys.text_a, {})
    assert (response.code, orjson.loads(response.body)["error"]["code"]) == (429, "too_many_secrets")
    assert response.headers["Retry-After"] == "60"
    await made(fetch, keys.text_b)
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() + 11)
    await made(fetch, keys.text_a)


async def test_requests_that_are_refused(fetch: Callable[..., Any], keys: Keys) -> None:
    for body, code, param in (
        (b"[]", 400, None),
        (b"\xff", 400, None),
        ({"expires_after": {"seconds": 5}}, 400, "expires_after.seconds"),
        ({"session": {"input_audio_format": "mp3"}}, 400, "session.input_audio_format"),
        (b" " * 70_000, 413, None),
    ):
        response = await fetch(PATH, keys.text_a, body)
        assert (response.code, orjson.loads(response.body)["error"]["param"]) == (code, param)
    assert (await fetch(PATH, keys.text_a, b"")).code == 200
    assert (await fetch(PATH, keys.text_a)).code == 405


async def test_where_there_are_no_keys(
    fetch: Callable[..., Any], connect: Callable[..., Any], gateway: Gateway
) -> None:
    """Any text does for a key; a secret still has what its sessions are like."""
    gateway.access = gateway.client_secrets._access = Access()
    gateway.settings = replace(gateway.settings, keys_file="")
    secret = (await made(fetch, "", session={"turn_detection": None}))["value"]
    for shown, manual in ((secret, True), ("ek_unknown", False)):
        connection = await connect("/v1/realtime", Authorization=f"Bearer {shown}")
        found = json.loads(await connection.read_message())["session"]["audio"]["input"]["turn_detection"]
        assert (found is None) is manual
        connection.close()
        assert await connection.read_message() is None
