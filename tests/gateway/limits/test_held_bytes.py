"""held_bytes.py: what a key holds over all its connections, in every protocol, and what others have beside it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import orjson
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.tcpclient import TCPClient

from asrserver.auth.keys import KeyLimits
from asrserver.gateway import backlog
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.held_bytes import HeldBytes
from asrserver.handlers import upload
from asrserver.handlers.wyoming import WyomingServer
from asrserver.protocol.frames import BINARY
from asrserver.shares import Share
from tests.gateway.limits.support import PIECE, Keyed, connect, error
from tests.waiting import until
from tests.ws_client import WsClient, chunk, frame

pytestmark = pytest.mark.gen_test(timeout=60)

#: A large message, a third of what is held in these tests together.
LARGE = bytes(100_000)


def test_the_limit_is_shared_out_by_weight() -> None:
    held = HeldBytes(300_000, lambda owner: Share(owner, 2.0 if owner == "heavy" else 1.0))
    assert not held.grew("a", 0, 300_000)  # alone: all of it
    assert held.grew("a", 0, 70_000)
    held.add("a", -70_000)
    assert not held.is_full_for("b", 149_000)  # and another has its half at once
    assert held.is_full_for("b", 151_000)
    assert not held.is_full_for("heavy", 199_000)
    assert not held.grew("a", 0, 60_000)  # what is small is never given up
    assert not held.grew("a", 70_000, 65_000)  # nor what shrinks
    held.add("a", -355_000)
    assert (held.total, held._held) == (0, {})


@contextlib.asynccontextmanager
async def unfinished(url: str, gateway: Gateway, *texts: str) -> AsyncIterator[list[WsClient]]:
    """Clients with these keys, each of which has sent all of a large message but its last byte."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await connect(url, text)) for text in texts]
        for number, client in enumerate(clients):
            await client.start(f"s{number}")
            await client.write(frame(BINARY, LARGE)[:-1])
            least = (number + 1) * (len(LARGE) - 1)
            await until(lambda least=least: gateway.held.total >= least)
        yield clients


@pytest.mark.parametrize("given", [{"message_memory": 301_000}])
@pytest.mark.parametrize("shares", [KeyLimits()])
async def test_unfinished_messages_of_a_key_leave_others_their_share(url: str, gateway: Gateway, keyed: Keyed) -> None:
    """It is the key with most that gives up its next one, over all its connections."""
    async with unfinished(url, gateway, keyed.text, keyed.text, keyed.text) as clients:
        async with await connect(url, keyed.free_text) as other, await connect(url, keyed.text) as fourth:
            await other.start("other")
            await other.write(frame(BINARY, LARGE)[:-1])
            await until(lambda: gateway.held.total > 399_000)
            await fourth.start("fourth")
            await fourth.write(frame(BINARY, LARGE))
            await error(fourth, "overloaded")
            await other.write(frame(BINARY, LARGE)[-1:])
            await other.find("other", "ack", 0)
        for number, client in enumerate(clients):
            await client.write(frame(BINARY, LARGE)[-1:])
            await client.find(f"s{number}", "ack", 0)
    await until(lambda: gateway.held.total == 0)


@pytest.mark.parametrize("given", [{"message_memory": 250_000}])
async def test_whole_messages_that_wait_count(url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind one that takes time; those for which there is no room are refused in their turn."""
    go_on = asyncio.Event()
    starting = gateway.start

    async def slowly(*given: object, **named: object) -> object:
        await go_on.wait()
        return await starting(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(gateway, "start", slowly)
    async with await connect(url) as one, await connect(url) as two:
        for client, sid in ((one, "one"), (two, "two")):
            await client.send({"action": "start", "session_id": sid})
            await client.send(chunk(sid, 0, PIECE))
            await client.write(frame(BINARY, LARGE) * 2)
        await until(lambda: len(gateway.held._held) == 1 and gateway.held.total > 200_000)
        assert gateway.held.total < 250_000
        go_on.set()
        for client, sid in ((one, "one"), (two, "two")):
            await client.find(sid, "ack", 0)
        await until(lambda: sum(map(len, taken_of(one, two))) == 2 + 2 + 2)
        assert sum(message.get("code") == "overloaded" for message in one.messages + two.messages) == 2
    await until(lambda: gateway.held.total == 0)


def taken_of(*clients: WsClient) -> list[list[object]]:
    return [[message for message in client.messages if message["type"] == "ack"] for client in clients]


@pytest.mark.parametrize("given", [{"message_memory": 10_000_000}])
async def test_messages_that_wait_are_freed_with_their_connection(
    url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(*given: object, **named: object) -> None:
        await asyncio.sleep(1000)

    monkeypatch.setattr(gateway, "start", never)
    async with await connect(url) as client:
        await client.send({"action": "start", "session_id": "s"})
        await client.write(frame(BINARY, LARGE) * 2)
        await until(lambda: gateway.held.total >= 200_000)
        [task] = [task for task in asyncio.all_tasks() if task.get_name() == "websocket messages"]
        task.cancel()
        await until(lambda: gateway.held.total == 0)


@pytest.mark.parametrize("shares", [KeyLimits()])
async def test_bytes_of_a_key_that_wait_are_bounded_whatever_its_connections(
    url: str, gateway: Gateway, keyed: Keyed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each connection may begin with a large chunk; to wait before it is read would cost as much."""
    monkeypatch.setattr(backlog, "MAX_KEY_BYTES", 250_000)
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(await connect(url, keyed.text)) for _ in range(6)]
        for number, client in enumerate(clients):
            await client.start(f"s{number}")
            await client.send(chunk(f"s{number}", 0, LARGE))
        await until(lambda: sum(map(len, taken_of(*clients))) == len(clients) + 3)
        for client in clients[3:]:
            refused = await error(client, "overloaded")
            assert (refused["chunk_index"], refused["retry_after"] > 0) == (0, True)
            await client.send(chunk(refused["session_id"], 0, PIECE))
            await client.find(refused["session_id"], "ack", 0)  # what is small is read slowly, and taken
        free = await stack.enter_async_context(await connect(url, keyed.free_text))
        await free.start("free")
        await free.chunk("free", 0, LARGE)
        await until(lambda: gateway.held.total == 0)  # Redis has all


# -- uploads -----------------------------------------------------------------------------------------------------------


async def upload_of(base_url: str, text: str, size: int) -> IOStream:
    """Begin an upload, and send so many bytes of it."""
    stream = await TCPClient().connect("127.0.0.1", int(base_url.rpartition(":")[2]))
    head = f"POST /api/v1/transcribe HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {text}\r\n"
    await stream.write(f"{head}Content-Length: 100000000\r\n\r\n".encode() + b"caff" + bytes(size - 4))
    return stream


@pytest.mark.parametrize("given", [{"upload_space": 300_000, "message_memory": 150_000}])
@pytest.mark.parametrize("shares", [KeyLimits()])
async def test_uploads_of_a_key_take_neither_all_memory_nor_all_space(
    base_url: str, url: str, gateway: Gateway, keyed: Keyed, http_client: AsyncHTTPClient
) -> None:
    """Beyond the one they go to the disk, and beyond the other they are refused; another key has its share of both."""
    streams = [await upload_of(base_url, keyed.text, 100_000) for _ in range(3)]
    await until(lambda: gateway.uploads.total == 300_000)
    assert gateway.held.total < 200_000
    body = b"caff" + bytes(99_996)
    refused = await http_client.fetch(
        f"{base_url}/api/v1/transcribe",
        method="POST",
        body=body,
        headers={"Authorization": f"Bearer {keyed.text}"},
        raise_error=False,
    )
    assert (refused.code, orjson.loads(refused.body)["error"]["code"]) == (503, "overloaded")
    assert int(refused.headers["Retry-After"]) > 0
    streams.append(await upload_of(base_url, keyed.free_text, 100_000))
    await until(lambda: gateway.uploads.total == 400_000)
    for stream in streams:
        stream.close()
    await until(lambda: gateway.uploads.total == 0 and gateway.held.total == 0 and gateway.connections == 0)


async def test_an_upload_of_next_to_nothing_stalls(
    base_url: str, url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then held a connection for a day."""
    for name, value in (("IDLE_SECONDS", 0.3), ("IDLE_BYTES", 100), ("CHECK_SECONDS", 0.05)):
        monkeypatch.setattr(upload, name, value)
    slow, live = await upload_of(base_url, "", 1000), await upload_of(base_url, "", 1000)

    async def trickle(stream: IOStream, size: int) -> None:
        while not stream.closed():
            await stream.write(bytes(size))
            await asyncio.sleep(0.02)

    trickling = [asyncio.ensure_future(trickle(slow, 1)), asyncio.ensure_future(trickle(live, 40))]
    with contextlib.suppress(Exception):
        await slow.read_until_close()
    assert slow.closed()
    assert gateway.connections == 1
    assert not live.closed()
    live.close()
    await asyncio.gather(*trickling, return_exceptions=True)
    await until(lambda: gateway.connections == 0)


async def test_the_fields_of_a_form_are_bounded_together(base_url: str, url: str, http_client: AsyncHTTPClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name="f%d"\r\n\r\n' + b"x" * 60_000 + b"\r\n"
    body = part % 1 + part % 2 + b"--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = await http_client.fetch(
        f"{base_url}/api/v1/transcribe", method="POST", body=body, headers=headers, raise_error=False
    )
    assert (answer.code, orjson.loads(answer.body)["error"]["code"]) == (400, "bad_request")
    assert str(upload.MAX_FIELD_BYTES) in orjson.loads(answer.body)["error"]["message"]


# -- Wyoming -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{"message_memory": 250_000}])
async def test_unfinished_events_of_all_connections_are_bounded(url: str, gateway: Gateway) -> None:
    """Clients of the Wyoming port have no key, and one share together."""
    [listening] = bind_sockets(0, "127.0.0.1")
    server = WyomingServer(gateway, listening)
    peers = []
    for _ in range(4):
        peer = await TCPClient().connect("127.0.0.1", listening.getsockname()[1])
        await peer.write(b'{"type": "describe", "data_length": 262144}\n' + LARGE)
        peers.append(peer)
    await until(lambda: gateway.connections == 2)
    assert sum(peer.closed() for peer in peers) <= 2
    for peer in peers:
        if not peer.closed():
            with contextlib.suppress(Exception):
                peer.close()
    await until(lambda: gateway.held.total == 0 and gateway.connections == 0)
    server.stop()
    await server.close()
