"""admission.py: a client reaches each limit of a gateway over a real socket; other clients do not notice."""

from __future__ import annotations

import asyncio
import contextlib
import time

import psutil
import pytest
from tornado.httpclient import AsyncHTTPClient
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketClosedError

from asrserver.broker import keys
from asrserver.broker.gateway_side import GatewayBroker
from asrserver.gateway import rate_limits as limits_module
from asrserver.gateway import room
from asrserver.gateway.gateway import Gateway
from asrserver.handlers.app import AsrApplication, BoundedHttpServer
from asrserver.protocol.frames import BINARY
from tests.fakes import FakeWorker
from tests.gateway.limits.support import PIECE, bystander, connect, error, refusal
from tests.waiting import until
from tests.ws_client import chunk, frame, look, stored

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.mark.parametrize(
    ("given", "status"), [({"max_connections": 2}, 503), ({"max_address_connections": 2}, 429)], ids=str
)
async def test_too_many_connections(url: str, gateway: Gateway, status: int) -> None:
    """The next one is refused before the upgrade, each time; open ones continue; a closed one makes room."""
    async with bystander(url) as progress:
        second = await connect(url)
        for _ in range(5):
            found, body = await refusal(url)
            assert (found, body["code"]) == (status, "too_many_connections")
            assert body["retry_after"] > 0
        plain = await AsyncHTTPClient().fetch(url.replace("ws", "http", 1), raise_error=False)
        assert plain.code == status  # as a page asks, which does not see why its connection is refused
        before = progress()
        await until(lambda: progress() > before)
        await second.close()
        await until(lambda: gateway.connections == 1)
        async with await connect(url) as third:
            await third.start("third")


@pytest.mark.parametrize("given", [{"max_connections": 3}])
async def test_connections_that_ask_for_nothing(app: AsrApplication, gateway: Gateway) -> None:
    """They are closed above the limit; connections that became WebSockets do not count."""
    server = BoundedHttpServer(app)
    socket, port = bind_unused_port()
    server.add_socket(socket)
    async with await connect(f"ws://127.0.0.1:{port}/ws/asr") as client:
        await client.start("s")
        idle = [await TCPClient().connect("127.0.0.1", port) for _ in range(3)]
        await until(lambda: len(server._connections) == 3)
        more = await TCPClient().connect("127.0.0.1", port)
        with pytest.raises(StreamClosedError):
            await more.read_bytes(1)
        await client.chunk("s", 0, PIECE)
        idle.pop().close()
        await until(lambda: len(server._connections) == 2)
        async with await connect(f"ws://127.0.0.1:{port}/ws/asr"):
            pass
        for stream in idle:
            stream.close()
    server.stop()


@pytest.mark.parametrize("given", [{"max_connection_sessions": 2, "max_sessions": 3}])
async def test_too_many_sessions(url: str, worker: FakeWorker, gateway: Gateway) -> None:
    async with await connect(url) as first, await connect(url) as second:
        for sid in ("a", "b"):
            await first.start(sid)
        await first.send({"action": "start", "session_id": "c"})
        assert "max_connection_sessions=2" in (await error(first, "too_many_sessions"))["message"]
        await second.start("c")
        await second.send({"action": "start", "session_id": "d"})
        refused = await error(second, "too_many_sessions")
        assert "max_sessions=3" in refused["message"]
        assert refused["retry_after"] > 0
        # What was acknowledged is served, and what is over makes room.
        await first.chunk("a", 0, PIECE)
        await first.send({"action": "finish", "session_id": "a"})
        await worker.take("a")
        await worker.chunk("a", 0)
        await worker.final("a")
        await first.find("a", "final_result")
        await second.start("d")
        assert len(gateway.sessions) == 3


@pytest.mark.parametrize("given", [{"max_chunk": 4000, "max_message": 8000}])
async def test_too_large_a_chunk_costs_that_chunk(url: str, worker: FakeWorker) -> None:
    async with await connect(url) as client:
        await client.start("s")
        await client.chunk("s", 0, PIECE)
        for message in (chunk("s", 1, bytes(4001)), bytes(4001)):
            client.messages.clear()
            client._read = 0
            await client.send(message)
            refused = await error(client, "chunk_too_large")
            assert (refused["session_id"], refused["chunk_index"] >= 1) == ("s", True)
        client.messages.clear()
        await client.send(bytes(8001))
        await error(client, "message_too_large")
        await client.send(chunk("s", 1, PIECE))
        await until(lambda: client.of("s", "ack"))
        assert list(await worker.audio("s", 2)) == ["1-0", "2-0"]
        await client.send({"action": "finish", "session_id": "s"})
        await worker.take("s")
        assert await worker.ended("s") == "interrupted"  # not all of its audio is there


@pytest.mark.parametrize("given", [{"message_memory": 200_000}])
@pytest.mark.parametrize("fragments", [1, 4])
async def test_unfinished_messages_take_no_more_memory_than_all_may(url: str, gateway: Gateway, fragments: int) -> None:
    """The one that grows beyond it is refused when its end has come, and may be sent again; no other is."""
    whole = 30 * PIECE
    size = len(whole) // fragments
    parts = [whole[n * size : (n + 1) * size] for n in range(fragments)]
    frames = [frame(BINARY if n == 0 else 0, part, final=n == fragments - 1) for n, part in enumerate(parts)]
    data = b"".join(frames)
    async with await connect(url) as patient, await connect(url) as client, await connect(url) as live:
        for one, sid in ((patient, "p"), (client, "c"), (live, "l")):
            await one.start(sid, mode="stream", format="pcm_s16le")
        await patient.write(data[:-1])
        held = gateway.held
        await until(lambda: held.total > 90_000)
        await client.write(frame(BINARY, bytes(150_000))[:-1])
        await until(lambda: held.total < 100_000)
        await live.chunk("l", 0, PIECE)
        await client.write(b"\0")
        assert (await error(client, "overloaded"))["retry_after"] > 0
        await patient.write(data[-1:])
        await patient.find("p", "ack", 0)
        await until(lambda: held.total == 0)
        await client.chunk("c", 0, PIECE)


@pytest.mark.parametrize("given", [{"message_memory": 100_000}])
@pytest.mark.parametrize("head", [1, 8])
async def test_a_message_may_be_given_up_within_the_head_of_a_frame(
    url: str, gateway: Gateway, monkeypatch: pytest.MonkeyPatch, head: int
) -> None:
    async with await connect(url) as client:
        await client.start("s", mode="stream", format="pcm_s16le")
        await client.write(frame(BINARY, bytes(80_000), final=False))
        held = gateway.held
        await until(lambda: held.total == 80_000)
        monkeypatch.setattr(held, "_limit", 80_000)  # others have taken the rest
        last = frame(0, bytes(1000))
        await client.write(last[:head])
        await until(lambda: held.total < 100)
        await client.write(last[head:])
        await error(client, "overloaded")
        await client.chunk("s", 0, PIECE)
        await client.find("s", "ack", 0)


@pytest.mark.parametrize("given", [{"max_session": 1.0}])
async def test_too_long_a_session_is_ended_with_what_it_has(
    url: str, worker: FakeWorker, gateway: Gateway, database_url: str
) -> None:
    """The acknowledged audio is recognised: the final result comes."""
    async with await connect(url) as client:
        await client.start("s", format="pcm_s16le")
        for index in range(10):
            await client.chunk("s", index, PIECE)
        await client.send(chunk("s", 10, PIECE))
        refused = await error(client, "session_too_long")
        assert (refused["session_id"], refused["chunk_index"]) == ("s", 10)
        await client.send(chunk("s", 11, PIECE))
        await error(client, "session_finished")
        await worker.take("s")
        for index in range(10):
            await worker.chunk("s", index)
        await worker.final("s", "all of it", 10)
        final = await client.find("s", "final_result")
        assert (final["text"], final["chunk_count"]) == ("all of it", 10)
        await until(gateway.write_behind.is_flushed)
        assert stored(database_url, "s") == ("interrupted", "all of it", 10)


@pytest.mark.parametrize("given", [{"max_session": 1.0}])
async def test_frames_that_come_together_are_limited_one_by_one(url: str, worker: FakeWorker) -> None:
    async with await connect(url) as client:
        await client.start("s", mode="stream", format="pcm_s16le")
        await client.write(b"".join(frame(BINARY, PIECE) for _ in range(12)))
        refused = await error(client, "session_too_long")
        assert (refused["session_id"], refused["chunk_index"]) == ("s", 10)
        await error(client, "session_finished")
        await client.find("s", "ack", 9)  # errors are told at once, acknowledgements when Redis has the chunks
        assert [ack["chunk_index"] for ack in client.of("s", "ack")[1:]] == list(range(10))


@pytest.mark.parametrize("given", [{"session_idle_timeout": 0.5}])
async def test_a_session_without_audio_is_ended(url: str, worker: FakeWorker, gateway: Gateway) -> None:
    async with await connect(url) as client:
        await client.start("idle")
        await client.start("busy")
        index = 0
        while not any(message.get("code") == "session_idle" for message in client.messages):
            await client.chunk("busy", index, PIECE)
            index += 1
        assert (await error(client, "session_idle"))["session_id"] == "idle"
        await worker.take("idle")
        await worker.final("idle", "", 0)
        await client.find("idle", "final_result")
        assert "busy" in gateway.sessions


@pytest.mark.parametrize("given", [{"idle_timeout": 0.5}])
async def test_an_idle_connection_is_closed(url: str, worker: FakeWorker) -> None:
    """Without an error message. One with an open session is not idle: its client may be recording."""
    async with await connect(url) as client, await connect(url) as recording:
        await recording.start("s")
        await until(lambda: client.closed)
        assert (client.connection.close_code, client.messages) == (1000, [])
        assert not recording.closed
        await recording.chunk("s", 0, PIECE)
        await recording.send({"action": "finish", "session_id": "s"})
        await worker.take("s")
        await worker.chunk("s", 0)
        await worker.final("s")
        await recording.find("s", "final_result")
        await until(lambda: recording.closed)


@pytest.mark.parametrize("given", [{"max_speed": 1.0, "speed_burst": 1.0}])
async def test_audio_too_fast_by_far_is_refused(url: str, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says when to send it again; then the session continues with it."""
    monkeypatch.setattr(room, "MAX_WAIT", 0.1)
    async with bystander(url), await connect(url) as client:
        await client.start("s", format="pcm_s16le")
        await client.chunk("s", 0, bytes(32000 * 12))  # 11 s more than a burst
        await client.send(chunk("s", 1, PIECE))
        refused = await error(client, "too_fast")
        assert (refused["session_id"], refused["chunk_index"]) == ("s", 1)
        assert 8 < refused["retry_after"] <= 11
        monkeypatch.setattr(limits_module, "MAX_DELAY_SECONDS", 60.0)
        await client.chunk("s", 1, PIECE)
        assert list(await worker.audio("s", 2)) == ["1-0", "2-0"]


@pytest.mark.parametrize("given", [{"max_ahead": 2.0}])
async def test_a_flood_is_read_as_it_is_recognised_and_costs_no_memory(
    url: str, gateway: Gateway, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """64 MB are sent at once and nothing is answered: the gateway takes what can be spoken in the time, and a few
    seconds more; the rest waits at the sender."""
    monkeypatch.setattr(room, "MAX_WAIT", 60.0)
    monkeypatch.setattr("asrserver.handlers.connection.MAX_WAIT", 60.0)
    async with bystander(url) as progress, await connect(url) as client:
        await client.start("s", format="pcm_s16le")
        before, began = psutil.Process().memory_info().rss, time.monotonic()
        sent = 0

        async def flood() -> None:
            nonlocal sent
            while sent < 2000:
                await client.connection.write_message(bytes(32000), binary=True)  # a second of audio
                sent += 1

        flooding = asyncio.ensure_future(flood())
        await until(lambda: len(client.of("s", "ack")) > 3 and progress() > 100)
        assert sent < 1000
        with look(redis_url) as client_of_redis:
            taken = client_of_redis.xlen(keys.audio_key("s")) - 1
        assert taken <= 2 + 2 + (time.monotonic() - began)
        assert psutil.Process().memory_info().rss - before < 16 * 2**20
        # As chunks are answered, more are read: many more than are spoken meanwhile.
        await worker.take("s")
        began = time.monotonic()
        for index in range(30):
            await client.find("s", "ack", index)
            await worker.chunk("s", index)
        assert time.monotonic() - began < 28
        object.__setattr__(gateway.settings, "max_ahead", 0.0)
        client.drop()
        with contextlib.suppress(WebSocketClosedError):
            await flooding
        await until(lambda: gateway.connections == 1)


async def test_the_place_in_the_queue_is_told(url: str, worker: FakeWorker) -> None:
    async with await connect(url) as client:
        for number, sid in enumerate(("a", "b", "c")):
            ack = await client.call({"action": "start", "session_id": sid, "queue_position": True})
            assert ack == {
                "type": "ack",
                "session_id": sid,
                "chunk_index": 0,
                "status": "session_started",
                "queued": number,
            }
        await worker.take("a", "b", "c")
        ack = await client.call({"action": "start", "session_id": "d", "queue_position": True})
        assert ack["queued"] == 0
        assert "queued" not in await client.call({"action": "start", "session_id": "e"})


@pytest.mark.parametrize("given", [{"max_queue": 100.0}])
async def test_past_the_backlog_no_session_starts_and_those_that_have_are_served(
    url: str, gateway: Gateway, worker: FakeWorker, redis_url: str
) -> None:
    """Audio that waits in other gateways counts too."""
    elsewhere = GatewayBroker(redis_url, "elsewhere")
    async with await connect(url) as client:
        await client.start("s", format="pcm_s16le")
        await client.chunk("s", 0, PIECE)
        elsewhere.heartbeat({"backlog": 99.95})
        await until(lambda: sum(gateway.sessions.shedder.elsewhere.values()) > 99)
        await client.send({"action": "start", "session_id": "t"})
        refused = await error(client, "overloaded")
        assert refused["retry_after"] > 0
        assert "t" not in gateway.sessions
        await client.chunk("s", 1, PIECE)
        await worker.take("s")
        await worker.chunk("s", 0)
        await worker.chunk("s", 1)
        await client.find("s", "chunk_result", 1)
        await client.start("t")
    await elsewhere.pipeline.drain()
    await elsewhere.close()


async def test_a_body_that_trickles_gives_its_connection_back(app: AsrApplication, gateway: Gateway) -> None:
    """An upload may take its time."""
    server = BoundedHttpServer(app, body_timeout=0.3)
    socket, port = bind_unused_port()
    server.add_socket(socket)

    async def begun(path: str) -> IOStream:
        stream = await TCPClient().connect("127.0.0.1", port)
        head = "Host: localhost\r\nContent-Type: audio/wav\r\nContent-Length: 100"
        await stream.write(f"POST {path} HTTP/1.1\r\n{head}\r\n\r\n.".encode())
        return stream

    upload = await begun("/api/v1/transcribe")
    streams = [await begun(path) for path in ("/livez", "/api/v1/history", "/v1/models")]
    for stream in streams:
        await stream.read_until_close()
    assert not upload.closed()
    assert len(server._connections) == 1
    upload.close()
    await until(lambda: gateway.connections == 0)
    server.stop()
