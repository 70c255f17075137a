"""TLS to a port without it, and HTTP to one with TLS: both are answered at once, and the answer says what is wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator

import pytest
import tornado.ioloop
from click.testing import CliRunner

from asrserver.cli.main import main
from asrserver.client import Client, HandshakeRefused
from asrserver.client.rest import open_url
from asrserver.handlers.app import AsrApplication, BoundedHttpServer
from asrserver.handlers.certificate import Certificate
from tests.api_keys import TLS

pytestmark = pytest.mark.gen_test(timeout=60)

#: Seconds after which a client would give up: nothing here may wait for it.
PATIENCE = 30.0


@pytest.fixture(params=["plain", "tls"])
def port(request: pytest.FixtureRequest, io_loop: tornado.ioloop.IOLoop, app: AsrApplication) -> Iterator[int]:
    """A port of the kind that the test's clients do not expect."""
    pair = str(TLS / "cert.pem"), str(TLS / "key.pem")
    tls = {"ssl_options": Certificate(*pair).context} if request.param == "tls" else {}
    server = BoundedHttpServer(app, **tls)
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    server.add_sockets([listening])
    yield listening.getsockname()[1]
    server.stop()
    io_loop.run_sync(server.close_all_connections)


@pytest.mark.parametrize("port", ["plain"], indirect=True)
async def test_a_client_that_speaks_tls_is_told_that_the_server_does_not(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "asrserver.app")
    async with asyncio.timeout(PATIENCE):
        with pytest.raises(ConnectionError, match="speaks no TLS: use http or ws"):
            await Client.connect(f"wss://127.0.0.1:{port}/ws/asr", timeout=2 * PATIENCE)
        with pytest.raises(ConnectionError, match="speaks no TLS: use http or ws"):
            await asyncio.to_thread(open_url, f"https://127.0.0.1:{port}/livez", "", 2 * PATIENCE)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for piece in (b"\x16", b"\x03\x01\x02\x00\x01"):  # the first bytes need not come together
            writer.write(piece)
            await writer.drain()
        answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 this port speaks no TLS: use http or ws\r\n")
    told = [record.getMessage() for record in caplog.records if record.name == "asrserver.app"]
    assert told == ["TLS from 127.0.0.1 to a port without it (--tls-cert)"] * 3


@pytest.mark.parametrize("port", ["plain"], indirect=True)
async def test_what_only_begins_like_tls_later_is_no_tls(port: int) -> None:
    """A second request on a connection, and a body, may begin as they like."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 200")
    writer.write(b"\x16\x03 /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    answer = await reader.read()
    writer.close()
    assert b"no TLS" not in answer


@pytest.mark.parametrize("port", ["tls"], indirect=True)
async def test_a_client_that_speaks_http_is_told_that_the_server_speaks_tls(port: int) -> None:
    with pytest.raises(HandshakeRefused, match="HTTP 400: this port speaks TLS: use https or wss"):
        await Client.connect(f"ws://127.0.0.1:{port}/ws/asr")
    arguments = ["status", "--server", f"http://127.0.0.1:{port}"]
    done = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert done.exit_code == 1
    assert "this port speaks TLS: use https or wss" in done.stderr
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"POST /api/v1/transcribe HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 9\r\n\r\nsome audio")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.endswith(b'{"error":{"code":"bad_request","message":"this port speaks TLS: use https or wss"}}')
