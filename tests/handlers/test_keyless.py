"""Who needs an API key where the operator lets clients of single protocols in without one."""

from __future__ import annotations

from typing import Any

import pytest
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.websocket import websocket_connect

from asrserver.config import Settings
from asrserver.gateway.gateway import Gateway
from tests.api_keys import Keys
from tests.handlers.samples import AUDIO
from tests.waiting import until
from tests.ws_client import WsClient

pytestmark = pytest.mark.gen_test(timeout=60)

WHISPERLIVE = {"uid": "u"}


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, keys: Keys) -> Settings:
    return Settings(
        redis_url=redis_url,
        database_url=database_url,
        keys_file=str(keys.path),
        allow_keyless=" vosk, ",
        allowed_origins="https://page.example",
    )


async def open_with(url: str, **headers: str) -> WsClient:
    return WsClient(await websocket_connect(HTTPRequest(url, headers=headers)))


@pytest.mark.parametrize("path", ["/vosk", "/"])
async def test_a_client_without_a_key(ws_url: str, gateway: Gateway, path: str) -> None:
    """Its sessions belong to nobody."""
    async with await WsClient.open(ws_url + path) as ws:
        assert await ws.call(AUDIO) == {"partial": ""}
        [session] = gateway.sessions.values()
        assert session.owner == ""


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/whisperlive", {}),
        ("/ws/asr", {}),
        ("/vosk", {"Authorization": "Bearer wrong"}),
        ("/vosk?key=wrong", {}),
        ("/vosk", {"Origin": "http://{host}"}),  # of a name that somebody else may own
    ],
)
async def test_who_needs_one(ws_url: str, path: str, headers: dict[str, str]) -> None:
    host = ws_url.removeprefix("ws://")
    with pytest.raises(HTTPClientError, match="401"):
        await open_with(ws_url + path, **{name: value.format(host=host) for name, value in headers.items()})


async def test_a_page_of_an_allowed_origin(ws_url: str) -> None:
    async with await open_with(f"{ws_url}/vosk", Origin="https://page.example") as ws:
        assert await ws.call(AUDIO) == {"partial": ""}


async def test_another_protocol_at_the_same_path(ws_url: str, gateway: Gateway, keys: Keys) -> None:
    """Which one it is shows only after the connection is open."""
    async with await WsClient.open(f"{ws_url}/") as ws:
        found: dict[str, Any] = await ws.call(WHISPERLIVE)
        assert found["code"] == "unauthorized"
        await until(lambda: ws.closed)
        assert ws.connection.close_code == 1008
    for path in ("/", "/whisperlive"):
        async with await WsClient.open(f"{ws_url}{path}?key={keys.text_a}") as ws:
            assert (await ws.call(WHISPERLIVE))["message"] == "SERVER_READY"
            assert {session.owner for session in gateway.sessions.values()} == {keys.a.id}
        await until(lambda: not gateway.connections)
