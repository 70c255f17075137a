"""Idle connections: their cost, and how lost ones are detected."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pytest
from tornado.http1connection import HTTP1Connection
from tornado.httpclient import HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPServerRequest
from tornado.netutil import bind_sockets
from tornado.websocket import websocket_connect

from asrserver.config import Settings
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication
from asrserver.handlers.flow_control import ServerFrameProtocol
from asrserver.handlers.websocket import NativeWebSocketHandler
from asrserver.protocol.frames import BINARY, FrameProtocol
from asrserver.protocol.transports import TcpTransport, TlsTransport
from tests.api_keys import TLS
from tests.program import System
from tests.waiting import until
from tests.ws_client import WsClient, frame

pytestmark = pytest.mark.gen_test(timeout=60)

UPGRADE = (
    b"GET /ws/asr?x=1 HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36\r\n"
    b"Accept-Encoding: gzip, deflate, br, zstd\r\nAccept-Language: en-GB,en;q=0.9,de;q=0.8\r\nCookie: a=%064d\r\n"
    b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n" % 0
)


@contextmanager
def opened(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Open WebSockets with a browser's request, by hand: nothing answers their pings."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(socket.create_connection(("127.0.0.1", port), timeout=10))
            made[-1].sendall(UPGRADE)
            answer = made[-1].recv(4096)
            assert answer.startswith(b"HTTP/1.1 101"), answer
        yield made
    finally:
        for one in made:
            one.close()


def test_an_idle_connection_takes_little_memory(start: Callable[..., System]) -> None:
    """20 KB are promised; Tornado's own WebSockets take that or more, with such headers."""
    system = start("gateway", "--ping-interval", "600").wait_ready()
    [process] = system.children("gateway")
    with opened(system.port, 100):
        before = process.memory_info().rss
        with opened(system.port, 400):
            each = (process.memory_info().rss - before) / 400
            assert each < 15 * 1024


@pytest.fixture
def gateway_settings(gateway_settings: Settings) -> Settings:
    return replace(gateway_settings, ping_interval=0.4, idle_timeout=0.0)


async def test_who_answers_no_ping_is_gone(url: str, http_port: int, app: AsrApplication, gateway: Gateway) -> None:
    async with await WsClient.open(url) as ws:
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        writer.write(UPGRADE)
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: gateway.connections == 2)
        sent = await reader.readuntil(b"ping timed out")
        assert sent[:2] == b"\x89\x00"  # a ping
        assert sent.endswith((1011).to_bytes(2, "big") + b"ping timed out")  # and no normal end, which is 1000
        writer.close()
        await until(lambda: gateway.connections == 1)
        await ws.start("s")  # who answers stays
    await until(lambda: gateway.connections == 0 and app.connections._timer is None)
    assert not gateway.admission.limits._addresses


async def test_who_is_held_back_is_not_gone(
    url: str, gateway: Gateway, app: AsrApplication, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pongs wait behind audio that the server does not read."""
    pings: list[ServerFrameProtocol] = []
    ping, full = ServerFrameProtocol.ping, [0.95]

    def counted(frames: ServerFrameProtocol) -> None:
        pings.append(frames)
        ping(frames)

    async def fullness() -> float:
        return full[0]

    monkeypatch.setattr(gateway.broker.status, "fullness", fullness)
    object.__setattr__(gateway.settings, "max_ahead", 0.0)
    async with await WsClient.open(url) as ws:
        await ws.send({"action": "start", "session_id": "s", "mode": "stream"})
        await ws.find("s", "ack")
        gateway.room.fullness = full[0]
        monkeypatch.setattr(ServerFrameProtocol, "ping", counted)
        sending = asyncio.ensure_future(ws.write(frame(BINARY, bytes(65536)) * 100))
        await until(lambda: len(pings) > 5)
        assert not ws.closed
        gateway.room.fullness = full[0] = 0.0
        await sending
        await until(lambda: len(ws.of("s", "ack")) == 101, timeout=40)


@pytest.mark.parametrize("secure", [False, True])
async def test_nothing_of_a_connection_waits_for_the_search_for_cycles(
    gateway: Gateway, app: AsrApplication, acyclic: None, secure: bool
) -> None:
    """Gateways rarely run the cyclic garbage collector: cycles would make them grow."""
    kinds = (NativeWebSocketHandler, FrameProtocol, TcpTransport, TlsTransport, HTTPServerRequest)
    others = [one for one in gc.get_objects() if isinstance(one, kinds)]
    certificate = {"certfile": TLS / "cert.pem", "keyfile": TLS / "key.pem"} if secure else None
    server, [listening] = HTTPServer(app, ssl_options=certificate), bind_sockets(0, "127.0.0.1")
    server.add_socket(listening)
    url = f"{'wss' if secure else 'ws'}://127.0.0.1:{listening.getsockname()[1]}/ws/asr"
    async with WsClient(await websocket_connect(HTTPRequest(url, validate_cert=False))) as ws:
        await ws.start("s")
        await ws.chunk("s", 0, bytes(640))
    async with WsClient(await websocket_connect(HTTPRequest(url, validate_cert=False))) as ws:
        ws.drop()
        await until(lambda: gateway.connections == 0)
    await until(lambda: ws.closed)
    server.stop()
    await server.close_all_connections()
    left = [one for one in gc.get_objects() if isinstance(one, kinds) and one not in others]
    assert left == []


async def test_a_connection_that_cannot_be_checked_costs_the_others_nothing(
    url: str, app: AsrApplication, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with await WsClient.open(url), await WsClient.open(url):
        first, second = app.connections
        checked: list[Any] = []

        def broken(now: float) -> float:
            raise RuntimeError("a defect")

        def counted(now: float) -> float:
            checked.append(now)
            return now + 0.1

        monkeypatch.setattr(first, "check", broken)
        monkeypatch.setattr(second, "check", counted)
        await until(lambda: len(checked) > 2)
        assert "could not be checked" in caplog.text


def test_too_few_files_for_the_connections_are_told_at_the_start(start: Callable[..., System]) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    system = start("gateway", "--max-connections", str(hard + 1)).wait_ready()
    assert f"--max-connections {hard + 1}" in system.output()
    limits = resource.prlimit(system.children("gateway")[0].pid, resource.RLIMIT_NOFILE)
    assert limits == (hard, hard)


async def test_a_client_that_leaves_during_the_handshake_is_no_error(
    url: str, http_port: int, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It leaves while Redis is asked whether it may connect."""
    handlers: list[NativeWebSocketHandler] = []
    opened: list[NativeWebSocketHandler] = []
    prepare, open_, connect = NativeWebSocketHandler.prepare, NativeWebSocketHandler.open, gateway.connect
    go_on = asyncio.Event()

    async def prepared(handler: NativeWebSocketHandler) -> None:
        handlers.append(handler)
        await prepare(handler)

    def opens(handler: NativeWebSocketHandler) -> None:
        opened.append(handler)
        open_(handler)

    async def connected(*given: Any) -> Callable[[], None]:
        await go_on.wait()
        return await connect(*given)

    monkeypatch.setattr(NativeWebSocketHandler, "prepare", prepared)
    monkeypatch.setattr(NativeWebSocketHandler, "open", opens)
    monkeypatch.setattr(gateway, "connect", connected)
    _, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(UPGRADE)
    await until(lambda: handlers)
    http = cast(HTTP1Connection, handlers[0].request.connection)
    writer.transport.abort()
    await until(http.stream.closed)
    go_on.set()
    await until(lambda: opened)
    await until(lambda: gateway.connections == 0)
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
