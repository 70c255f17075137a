"""handlers/auth.py over a real socket: keys on every route, access to sessions, pages of other origins."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest, HTTPResponse
from tornado.httpserver import HTTPServer
from tornado.websocket import WebSocketClientConnection, websocket_connect

from asrserver.config import Settings
from asrserver.gateway import gateway as gateway_module
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication
from asrserver.handlers.page import FOLDER, PAGES
from tests.api_keys import Keys
from tests.fakes import FakeWorker
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, keys: Keys) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        keys_file=str(keys.path),
        allowed_origins="https://page.example",
    )


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "FILES_EVERY", 0.05)


@pytest.fixture
def fetch(base_url: str, http_server: HTTPServer, http_client: AsyncHTTPClient) -> Callable[..., Any]:
    """Return a function for requests: fetch("/api/v1/health", key="…", method="GET", headers={…})."""

    async def get(path: str, key: str = "", headers: dict[str, str] | None = None, **options: Any) -> HTTPResponse:
        shown = {"Authorization": f"Bearer {key}"} if key else {}
        return await http_client.fetch(
            base_url + path,
            headers={**shown, **(headers or {})},
            raise_error=False,
            allow_nonstandard_methods=True,
            **options,
        )

    return get


async def connect(base_url: str, path: str = "/ws/asr", **headers: str) -> WebSocketClientConnection:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return await websocket_connect(HTTPRequest(base_url.replace("http", "ws", 1) + path, headers=names))


def _filled(part: re.Match[str]) -> str:
    return "" if part[0] == "\\" else "x"


def paths(app: AsrApplication) -> list[str]:
    """A path for every route, and one without a route."""
    rules = [rule for host in app.wildcard_router.rules for rule in [host]]
    found = [re.sub(r"\(.*?\)|\\", _filled, rule.matcher.regex.pattern.rstrip("$")) for rule in rules]  # type: ignore[attr-defined]
    assert "/ws/asr" in found
    assert "/api/v1/session/x" in found
    return [*found, "/nothing", "/api/v1/session/%ff?token=x"]


#: What answers without a key, and with which status.
PUBLIC = {"/livez": 200, "/readyz": 200, **dict.fromkeys(PAGES, 200), f"{FOLDER}x": 404}


async def test_without_a_key_nothing_opens_but_probes_and_the_pages(
    app: AsrApplication, fetch: Callable[..., Any], keys: Keys
) -> None:
    """Every route, by every method, without a key and with a wrong one."""
    for path in paths(app):
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"):
            if path in PUBLIC and method in ("GET", "HEAD"):
                assert (await fetch(path)).code == PUBLIC[path]
                continue
            for key in ("", keys.text_a[:-1] + "-"):
                response = await fetch(path, key, method=method)
                if "%ff" in path:
                    assert response.code == 400
                    continue
                if path in PUBLIC:  # what is wrong is the method
                    assert response.code == (204 if method == "OPTIONS" else 405)
                    continue
                assert response.code == 401, (path, method)
                assert response.headers["WWW-Authenticate"].startswith("Bearer")
                if method != "HEAD":
                    body = orjson.loads(response.body)
                    openai = path.startswith(("/v1", "/audio"))
                    code = body["err_code"] if path == "/v1/listen" else body["error"]["code"]
                    assert code in ("INVALID_AUTH", "invalid_api_key" if openai else "unauthorized")


async def test_only_operators_see_the_server_as_a_whole(
    fetch: Callable[..., Any], gateway: Gateway, keys: Keys
) -> None:
    """Metrics, processes, machines, and what parts say of themselves; that they work is for any key."""
    while not await gateway.broker.status.heartbeats("gateway"):
        await asyncio.sleep(0.01)
    refused = await fetch("/metrics", keys.text_a)
    assert (refused.code, orjson.loads(refused.body)["error"]["code"]) == (403, "operator_required")
    assert b"asrserver_" not in refused.body
    assert b"asrserver_connections" in (await fetch("/metrics", keys.text_operator)).body
    body = (await fetch("/api/v1/health", keys.text_a)).body
    shown = orjson.loads(body)
    assert shown["redis"] == shown["postgres"] == {"ready": True}
    assert (shown["workers_ready"], shown["recognition"]) == (False, {"ready": False})
    assert not {"gateways", "workers"} & shown.keys()
    assert str(os.getpid()).encode() not in body
    whole = orjson.loads((await fetch("/api/v1/health", keys.text_operator)).body)
    assert whole["gateways"][0]["pid"] == os.getpid()
    assert whole["redis"]["keys"] >= 0
    assert "no worker" in whole["recognition"]["error"]


async def test_a_key_is_shown_in_three_ways(base_url: str, fetch: Callable[..., Any], keys: Keys) -> None:
    for path in ("/api/v1/history", f"/api/v1/history?token={keys.text_a}&limit=5"):
        assert (await fetch(path, "" if "token" in path else keys.text_a)).code == 200
    assert (await fetch("/api/v1/history", headers={"api-key": keys.text_a})).code == 200
    for arguments, protocol in (
        ({"Authorization": f"Bearer {keys.text_a}"}, None),
        ({"path": f"/ws/asr?uid=1&token={keys.text_a}"}, None),
        ({"path": f"/ws/asr?key={keys.text_a}&uid=1"}, None),
        ({"Sec_WebSocket_Protocol": f"asr.v1, bearer.{keys.text_a}"}, "asr.v1"),
        ({"Sec_WebSocket_Protocol": f"bearer.{keys.text_a},asr.v1"}, "asr.v1"),
        ({"Sec_WebSocket_Protocol": f"bearer.{keys.text_a}"}, None),
    ):
        connection = await connect(base_url, **arguments)
        assert connection.selected_subprotocol == protocol
        await connection.write_message(json.dumps({"action": "start"}))
        assert json.loads(await connection.read_message() or "")["status"] == "session_started"
        connection.close()
        assert await connection.read_message() is None
    with pytest.raises(HTTPClientError, match="401"):
        await connect(base_url, Sec_WebSocket_Protocol="asr.v1")
    with pytest.raises(HTTPClientError, match="401"):
        await connect(base_url, Sec_WebSocket_Protocol="asr.v1, bearer.x", Authorization="Bearer y")


async def test_a_revoked_key_loses_its_connections(
    quick: None, base_url: str, http_server: HTTPServer, gateway: Gateway, keys: Keys
) -> None:
    """Its sessions, which nobody can resume, end with the audio that they have; another key's sessions continue."""
    object.__setattr__(gateway.settings, "resume_timeout", 0.1)
    mine = await connect(base_url, Authorization=f"Bearer {keys.text_a}")
    other = await connect(base_url, Authorization=f"Bearer {keys.text_b}")
    for connection, sid in ((mine, "mine"), (other, "other")):
        await connection.write_message(json.dumps({"action": "start", "session_id": sid}))
        assert json.loads(await connection.read_message() or "")["status"] == "session_started"
    assert (gateway.sessions["mine"].owner, gateway.sessions["other"].owner) == (keys.a.id, keys.b.id)
    keys.file.revoke(keys.a.id)
    assert await mine.read_message() is None
    assert mine.close_code == 1008
    await until(lambda: gateway.sessions["mine"].state != "recording")
    assert gateway.sessions["other"].state == "recording"
    with pytest.raises(HTTPClientError, match="401"):
        await connect(base_url, Authorization=f"Bearer {keys.text_a}")
    for connection in (mine, other):
        connection.close()
    assert await other.read_message() is None


async def test_a_key_sees_its_own_sessions_only(
    base_url: str, fetch: Callable[..., Any], keys: Keys, gateway: Gateway, worker: FakeWorker
) -> None:
    """For another key's session every request is a 404, open or stored; it is in no history, statistic or search, and
    cannot be resumed."""
    client = WsClient(await connect(base_url, Authorization=f"Bearer {keys.text_a}"))
    for sid in ("stored", "open"):
        await client.start(sid)
        await client.chunk(sid, 0, bytes(100))
    await worker.take("stored", "open")
    await worker.chunk("stored", 0, "mine alone")
    await client.send({"action": "finish", "session_id": "stored"})
    await worker.final("stored", "mine alone")
    await client.find("stored", "final_result")
    await until(gateway.write_behind.is_flushed)

    async def seen(key: str, query: str = "") -> list[str]:
        response = await fetch("/api/v1/history" + query, key)
        body = orjson.loads(response.body)
        assert body["total"] == len(body["records"])
        return sorted(record["session_id"] for record in body["records"])

    paths = ("/api/v1/session/stored", "/api/v1/session/stored?format=txt", "/api/v1/session/open")
    for path in paths:
        assert (await fetch(path, keys.text_a)).code == 200
        assert (await fetch(path, keys.text_operator)).code == 200
        for method in ("GET", "HEAD", "DELETE"):
            asked = path.partition("?")[0] if method == "DELETE" else path
            refused = await fetch(asked, keys.text_b, method=method)
            assert refused.code == 404, (asked, method)
            assert method != "GET" or b"no such session of this API key" in refused.body
    for query in ("", "?q=alone"):
        assert await seen(keys.text_b, query) == []
    assert await seen(keys.text_a) == await seen(keys.text_operator) == ["open", "stored"]
    assert await seen(keys.text_a, "?q=alone") == ["stored"]
    assert orjson.loads((await fetch("/api/v1/stats", keys.text_b)).body)["total_tasks"] == 0
    other = WsClient(await connect(base_url, Authorization=f"Bearer {keys.text_b}"))
    assert (await other.call({"action": "resume", "session_id": "open"}))["code"] == "no_session"
    await client.chunk("open", 1, bytes(100))  # it is still where it was
    assert (await fetch("/api/v1/session/stored", keys.text_a, method="DELETE")).code == 200
    assert (await fetch("/api/v1/session/open", keys.text_operator, method="DELETE")).code == 200
    await other.close()
    await client.close()


async def test_pages_of_other_origins(
    fetch: Callable[..., Any], keys: Keys, base_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An allowed origin gets CORS headers, with errors too; a preflight needs no key; other origins get 403.

    The log names the origin and the setting that would allow it.
    """
    caplog.set_level("INFO")
    page = {"Origin": "https://page.example"}
    for key, path, code in (
        (keys.text_a, "/api/v1/history", 200),
        ("", "/api/v1/history", 401),
        (keys.text_a, "/nothing", 404),
    ):
        response = await fetch(path, key, page)
        assert (response.code, response.headers["Access-Control-Allow-Origin"]) == (code, "https://page.example")
        assert response.headers["Vary"] == "Origin"
        assert "Content-Range" in response.headers["Access-Control-Expose-Headers"]
    asks = {**page, "Access-Control-Request-Method": "DELETE", "Access-Control-Request-Headers": "authorization"}
    response = await fetch("/api/v1/session/x", headers=asks, method="OPTIONS")
    assert response.code == 204
    assert "DELETE" in response.headers["Access-Control-Allow-Methods"]
    assert {"Authorization", "Range", "If-Range"} <= set(response.headers["Access-Control-Allow-Headers"].split(", "))
    for headers in ({"Origin": "https://evil.example"}, {**asks, "Origin": "https://evil.example"}):
        for method in ("GET", "OPTIONS"):
            response = await fetch("/api/v1/history", keys.text_a, headers, method=method)
            assert response.code == 403
            assert "Access-Control-Allow-Origin" not in response.headers
            assert orjson.loads(response.body)["error"]["code"] == "origin_not_allowed"
            assert "origin 'https://evil.example' is not one of --allowed-origins" in caplog.messages
            caplog.clear()
    response = await fetch("/api/v1/history", keys.text_a, {"Origin": base_url})
    assert response.code == 200
    assert "Access-Control-Allow-Origin" not in response.headers
