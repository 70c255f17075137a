"""Clients that break the protocol or leave at any moment: each gets a code, and nothing of them stays."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import struct
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.netutil import bind_sockets

from asrserver.gateway.gateway import Gateway
from asrserver.handlers import accepting
from asrserver.handlers.app import AsrApplication, BoundedHttpServer
from asrserver.protocol.frames import FrameProtocol
from asrserver.protocol.transports import TcpTransport
from tests.handlers.test_keepalive import UPGRADE
from tests.waiting import until
from tests.ws_client import WsClient, frame

pytestmark = pytest.mark.gen_test(timeout=60)

CLOSE, PING = 8, 9


def descriptors() -> int:
    """Open file descriptors of this process."""
    return len(os.listdir("/proc/self/fd"))


async def check_nothing_is_left(gateway: Gateway, app: AsrApplication, files: int) -> None:
    """Wait until no connection, no session, no backlog and no file descriptor is left of any client."""
    await until(lambda: gateway.connections == 0 and not app.connections, what="no connection")
    assert not gateway.admission.limits._addresses
    assert not gateway.sessions.values()
    assert gateway.sessions.backlog.seconds == 0
    assert not gateway.sessions.backlog._accounts
    assert not gateway.sessions.backlog._heard
    await until(lambda: descriptors() <= files, what="no descriptor")


@pytest.mark.parametrize(
    ("code", "sent"),
    [
        (1007, frame(CLOSE, b"\x03\xe8\xff")),
        (1002, frame(CLOSE, b"\x03")),
        (1002, frame(CLOSE, (1005).to_bytes(2, "big"))),
        (1002, frame(11, b"an opcode that is none")),
        (1000, frame(CLOSE, b"\x03\xe8" + "grüße".encode())),
    ],
)
@pytest.mark.parametrize("together", [True, False])
async def test_a_bad_close_frame_leaves_no_connection(
    http_server: Any, http_port: int, app: AsrApplication, gateway: Gateway, code: int, sent: bytes, together: bool
) -> None:
    """Above all one that comes with the upgrade: what it raised left the connection open for ever."""
    files = descriptors()
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        writer.write(UPGRADE + sent * together)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent * (not together))
        answer = await reader.read()
        assert (answer[0], answer[2:4]) == (0x80 | CLOSE, code.to_bytes(2, "big"))
        writer.close()
        await writer.wait_closed()
    await check_nothing_is_left(gateway, app, files)


async def test_an_error_in_a_control_frame_ends_the_connection(
    http_server: Any, http_port: int, app: AsrApplication, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_given: Any) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(FrameProtocol, "_send_pong", broken)
    files = descriptors()
    for together in (True, False):
        reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
        writer.write(UPGRADE + frame(PING, b"") * together)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(frame(PING, b"") * (not together))
        assert await reader.read() == b""
        writer.close()
    await check_nothing_is_left(gateway, app, files)


async def test_a_connection_that_is_closing_for_long_is_cut(
    http_server: Any, http_port: int, app: AsrApplication, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever keeps its end from being noticed."""
    monkeypatch.setattr(TcpTransport, "close", lambda _transport: None)
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: len(app.connections) == 1)
    for handler in app.connections:
        handler.close(1012, "")
    assert await reader.readexactly(4)
    assert await reader.read() == b""
    writer.close()
    await until(lambda: gateway.connections == 0 and not app.connections)


async def test_who_pings_and_does_not_read_is_cut(
    http_server: Any, http_port: int, app: AsrApplication, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    files = descriptors()
    reader, writer = await asyncio.open_connection("127.0.0.1", http_port)
    writer.write(UPGRADE)
    await reader.readuntil(b"\r\n\r\n")
    await until(lambda: len(app.connections) == 1)
    [handler] = app.connections
    await until(lambda: handler.ws_connection.stream._transport is not None)  # type: ignore[attr-defined]
    while not handler.ws_connection.blocked:  # type: ignore[attr-defined]
        handler.send(b"x" * 1000)  # type: ignore[attr-defined]
    handler.ws_connection.stream._limit = 1  # type: ignore[attr-defined]
    writer.write(frame(PING, b"x" * 100))
    await until(lambda: gateway.connections == 0)
    writer.close()
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    await check_nothing_is_left(gateway, app, files)


async def test_clients_that_reset_at_any_moment_are_no_errors(
    http_server: Any, http_port: int, app: AsrApplication, gateway: Gateway, caplog: pytest.LogCaptureFixture
) -> None:
    """Before, during and right after the handshake."""
    files = descriptors()
    sizes = [1, 20, len(UPGRADE) - 1, len(UPGRADE), len(UPGRADE) + 3]
    for number in range(100):
        one = socket.create_connection(("127.0.0.1", http_port))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        one.sendall((UPGRADE + frame(PING, b"abc"))[: sizes[number % len(sizes)]])
        for _ in range(number % 7):
            await asyncio.sleep(0)
        one.close()  # a reset
    async with await WsClient.open(f"ws://127.0.0.1:{http_port}/ws/asr") as ws:
        await ws.start("s")
        await until(lambda: gateway.connections == 1)
        gateway.sessions.end(gateway.sessions["s"], "done")
    assert [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")] == []
    await until(lambda: gateway.connections == 0 and descriptors() <= files)


@pytest.mark.parametrize("path", ["/api/v1/history", "/ws/asr", "/metrics", "/livez"])
async def test_a_page_whose_name_was_rebound_reads_nothing(
    base_url: str, http_server: Any, http_client: AsyncHTTPClient, path: str
) -> None:
    """For its browser the server is of the page's own origin; only the Host header tells."""
    headers = {"Host": "evil.example", "Origin": "http://evil.example"}
    answer = await http_client.fetch(base_url + path, headers=headers, raise_error=False)
    if path == "/livez":
        assert answer.code == 200
    else:
        assert (answer.code, json.loads(answer.body)["error"]["code"]) == (403, "host_not_allowed")


async def test_without_file_descriptors_connections_wait(
    app: AsrApplication, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They are served when there are some again; the log has a line for each try, and there are few."""
    monkeypatch.setattr(accepting, "ACCEPT_PAUSE", 0.1)
    accept, tries = socket.socket.accept, [0]

    def failing(_listening: socket.socket) -> Any:
        tries[0] += 1
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    server, [listening] = BoundedHttpServer(app), bind_sockets(0, "127.0.0.1")
    monkeypatch.setattr(socket.socket, "accept", failing)
    server.add_socket(listening)
    connecting = asyncio.ensure_future(WsClient.open(f"ws://127.0.0.1:{listening.getsockname()[1]}/ws/asr"))
    await until(lambda: tries[0] == 3)
    monkeypatch.setattr(socket.socket, "accept", accept)
    async with await connecting as ws:
        await ws.start("s")
    lines = [record for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert [("no connection can be accepted" in one.getMessage(), one.exc_info) for one in lines] == [(True, None)] * 3
    server.stop()
    await server.close_all_connections()


async def test_connections_that_cannot_be_taken_over_cost_a_line_each(
    url: str, app: AsrApplication, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without file descriptors there are many of them, and each had a traceback."""

    def dup(_socket: socket.socket) -> socket.socket:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as none_left:
        none_left.setattr(socket.socket, "dup", dup)
        for _ in range(3):
            async with await WsClient.open(url) as client:
                await until(lambda client=client: client.closed)
    await until(lambda: not gateway.connections)
    lines = [record for record in caplog.records if record.name == "asrserver.frames"]
    assert len(lines) == 3
    assert all("Too many open files" in record.getMessage() and record.exc_info is None for record in lines)
    assert not [record for record in caplog.records if record.exc_info]
