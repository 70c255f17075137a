"""limits.py, admission.py, broker/quota.py: each limit reached by a client over a real socket; who does not feel it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import psutil
import pytest
import tornado.ioloop
from tornado.httpclient import AsyncHTTPClient, HTTPClientError, HTTPRequest
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.tcpclient import TCPClient
from tornado.testing import bind_unused_port
from tornado.websocket import WebSocketClosedError, websocket_connect

from asrserver.auth import KeyLimits, KeysFile
from asrserver.broker import keys, quota
from asrserver.broker.broker import Broker
from asrserver.config import Settings
from asrserver.errors import Refused
from asrserver.gateway import gateway as gateway_module
from asrserver.gateway import rate_limits as limits_module
from asrserver.gateway.backlog import COMPRESSED, ON_ITS_WAY, Backlog
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.rate_limits import Limits, Pace
from asrserver.handlers.app import AsrApplication, Server
from asrserver.protocol.frames import BINARY
from tests.conftest import System, Utterance, until
from tests.fakes import Pretender
from tests.ws_client import Message, Talk, chunk, frame, look, stored
from tools import hostile

pytestmark = pytest.mark.gen_test(timeout=60)

#: A tenth of a second of PCM.
PIECE = bytes(3200)


# -- decisions -------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """clock(5.0): five seconds go by."""
    now = [1000.0]
    monkeypatch.setattr(limits_module.time, "monotonic", lambda: now[0])

    def go(seconds: float) -> None:
        now[0] += seconds

    return go


def test_audio_against_the_clock(clock: Callable[[float], None]) -> None:
    pace = Pace(factor=2.0, burst=10.0)
    pace.spend(10.0)
    assert pace.debt == 0
    pace.spend(8.0)
    assert pace.debt == pytest.approx(4.0)
    clock(3.0)
    assert pace.debt == pytest.approx(1.0)
    assert pace.lead == pytest.approx(15.0)
    clock(1.0)
    assert pace.debt == 0
    endless = Pace(factor=0.0, burst=0.0)
    endless.spend(1e9)
    assert endless.debt == 0


def test_connections_are_counted_for_as_long_as_they_last() -> None:
    limits = Limits(Settings(max_connections=3, max_address_connections=2))
    for address in ("2001:db8::1", "2001:db8::2"):
        limits.connect(address)
    with pytest.raises(Refused) as refused:
        limits.connect("2001:db8::3")
    assert (refused.value.status, refused.value.code) == (429, "too_many_connections")
    limits.connect("10.0.0.1")
    with pytest.raises(Refused) as refused:
        limits.connect("10.0.0.2")
    assert (refused.value.status, refused.value.code) == (503, "too_many_connections")
    for address in ("10.0.0.1", "2001:db8::2", "2001:db8::1"):
        limits.disconnect(address)
    limits.connect("2001:db8::3")
    limits.disconnect("2001:db8::3")
    assert not limits._addresses


@pytest.mark.parametrize(
    ("given", "used", "expected"),
    [
        ({}, (99, 1999, 3599.0), None),
        ({}, (100, 0, 0.0), (429, "too_many_sessions")),
        ({}, (0, 2000, 0.0), (503, "too_many_sessions")),
        ({}, (0, 0, 3600.0), (503, "overloaded")),
        ({"max_connection_sessions": 0, "max_sessions": 0, "max_queue": 0.0}, (10**6, 10**6, 1e9), None),
    ],
)
def test_when_a_session_may_start(given: dict[str, Any], used: tuple[int, int, float], expected: Any) -> None:
    if expected is None:
        Limits(Settings(**given)).start(*used)
        return
    with pytest.raises(Refused) as refused:
        Limits(Settings(**given)).start(*used)
    assert (refused.value.status, refused.value.code) == expected
    assert refused.value.details["retry_after"] > 0


def length(backlog: Backlog) -> float:
    """Seconds of audio so far in the session s."""
    return backlog.measure("s", b"", 0, 32000)[1]


def test_seconds_of_audio_by_its_bytes() -> None:
    """Of a WAV as it says itself; of what is compressed as a guess, until answers tell."""
    backlog = Backlog()
    wav = Utterance("", "", bytes(64000)).wav
    assert backlog.measure("s", wav, len(wav), 96000)[0] == pytest.approx(2.0, abs=0.01)
    assert backlog.measure("s", bytes(96), 96000, 96000)[0] == 1.0
    assert backlog.measure("s", b"OggS", 8000, 96000)[0] == 8000 / COMPRESSED
    backlog.taken("s", 0, b"OggS", 8000, 96000, live=False)
    assert backlog.waiting("s") == length(backlog) == 1.0
    backlog.answered("s", 0, 4.0)
    assert (backlog.waiting("s"), length(backlog)) == (0.0, 4.0)
    assert backlog.measure("s", bytes(8), 8000, 96000)[0] == 4.0
    for index in (1, 2, 3):
        backlog.taken("s", index, bytes(8), 2000, 96000, live=False)
    backlog.progressed("s", 2, 6.0)
    assert (backlog.waiting("s"), length(backlog)) == (1.0, 7.0)
    backlog.over("s")
    assert length(backlog) == 0.0


def test_seconds_of_a_session_that_came_from_another_gateway() -> None:
    backlog = Backlog()
    backlog.restore("s", 100.0, 32000, live=False)
    backlog.taken("s", 7, bytes(8), 32000, 32000, live=False)
    backlog.taken("s", 8, bytes(8), 32000, 32000, live=False)
    assert (backlog.waiting("s"), length(backlog)) == (2.0, 102.0)
    backlog.answered("s", 7, 101.0)
    assert (backlog.waiting("s"), length(backlog)) == (1.0, 102.0)


def test_what_is_on_its_way_is_no_backlog() -> None:
    """Of a stream that is read once a second and told of every two; of files all waits that is not answered."""
    backlog = Backlog()
    for sid, live in (("stream", True), ("files", False)):
        backlog.taken(sid, 0, bytes(8), int(3.5 * 32000), 32000, live)
    assert backlog.seconds == 3.5
    backlog.taken("stream", 9, bytes(8), 32000, 32000, live=True)
    assert backlog.seconds == 3.5 + 3.5 + 1.0 - ON_ITS_WAY
    assert backlog.waiting("stream") == 4.5
    backlog.restore("resumed", 100.0, 32000, live=True)
    backlog.taken("resumed", 0, bytes(8), int(3.5 * 32000), 32000, live=True)
    assert backlog.seconds == 3.5 + 3.5 + 1.0 - ON_ITS_WAY


# -- over a socket ---------------------------------------------------------------------------------------------------


@pytest.fixture
def given() -> dict[str, Any]:
    """Settings of a test; by parametrize."""
    return {}


@pytest.fixture
def shares(tmp_path: Path) -> KeyLimits | None:
    """Limits of the test's key; by parametrize. None: no keys are asked for."""
    return None


class Keyed:
    """A key with limits, one without, and the file they are in."""

    def __init__(self, path: Path, limits: KeyLimits) -> None:
        self.file = KeysFile(str(path))
        self.limited, self.text = self.file.create("limited", limits, operator=False)
        self.free, self.free_text = self.file.create("free", KeyLimits(), operator=False)


@pytest.fixture
def keyed(tmp_path: Path, shares: KeyLimits | None) -> Keyed | None:
    return None if shares is None else Keyed(tmp_path / "keys.json", shares)


@pytest.fixture
def gateway_settings(redis_url: str, database_url: str, given: dict[str, Any], keyed: Keyed | None) -> Settings:
    path = "" if keyed is None else str(keyed.file.path)
    return Settings(redis_url=redis_url, database_url=database_url, keys_file=path, **given)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateway_module, "WATCH_EVERY", 0.05)
    monkeypatch.setattr(gateway_module, "HEARTBEAT_EVERY", 0.2)


@pytest.fixture
def url(gateway: Gateway, base_url: str, http_server: HTTPServer) -> str:
    return base_url.replace("http", "ws", 1) + "/ws/asr"


@pytest.fixture
def other(io_loop: tornado.ioloop.IOLoop, gateway_settings: Settings, gateway: Gateway) -> Iterator[str]:
    """The address of a second gateway."""

    async def opened() -> tuple[Gateway, HTTPServer, str]:
        made = Gateway(gateway_settings)
        await made.open()
        server = HTTPServer(AsrApplication(made))
        socket, port = bind_unused_port()
        server.add_socket(socket)
        return made, server, f"ws://127.0.0.1:{port}/ws/asr"

    made, server, url = io_loop.run_sync(opened)
    yield url

    async def closed() -> None:
        server.stop()
        await server.close_all_connections()
        await made.close()

    io_loop.run_sync(closed)


async def talk(url: str, key: str = "") -> Talk:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return Talk(await websocket_connect(HTTPRequest(url, headers=headers), max_message_size=1 << 26))


async def refusal(url: str, key: str = "") -> tuple[int, Message]:
    """The status and the error that a connection is refused with; it says when to come again."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    with pytest.raises(HTTPClientError) as refused:
        await websocket_connect(HTTPRequest(url, headers=headers))
    response = refused.value.response
    if response is None or not response.body:  # Tornado's WebSocket client does not read it
        response = await AsyncHTTPClient().fetch(
            HTTPRequest(
                url.replace("ws", "http", 1),
                headers={
                    **headers,
                    "Upgrade": "websocket",
                    "Connection": "Upgrade",
                    "Sec-WebSocket-Version": "13",
                    "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
                },
            ),
            raise_error=False,
        )
    assert int(response.headers["Retry-After"]) >= 1
    return response.code, orjson.loads(response.body)["error"]


async def error(talk: Talk, code: str) -> Message:
    """The connection's first error of this code."""

    def found() -> Message | None:
        return next((message for message in talk.messages if message.get("code") == code), None)

    message: Message = await until(found, what=f"an error {code}")
    return message


@contextlib.asynccontextmanager
async def bystander(url: str, key: str = "") -> AsyncIterator[Callable[[], int]]:
    """A client that goes on all the while, chunk by chunk; what it yields counts those acknowledged. In the end, every
    one was, in order, and nothing else came."""
    async with await talk(url, key) as quiet:
        await quiet.start("bystander")
        stop = False

        async def run() -> int:
            index = 0
            while not stop:
                await quiet.chunk("bystander", index, PIECE[:32])  # so little that it is not ahead itself
                index += 1
            return index

        running = asyncio.ensure_future(run())
        try:
            yield lambda: len(quiet.messages) - 1
        finally:
            stop = True
            sent = await running
        assert [message.get("chunk_index") for message in quiet.messages[1:]] == list(range(sent))


@pytest.mark.parametrize(
    ("given", "status"), [({"max_connections": 2}, 503), ({"max_address_connections": 2}, 429)], ids=str
)
async def test_too_many_connections(url: str, gateway: Gateway, status: int) -> None:
    """One more is refused before the upgrade, as often as it comes; those that are there go on; who goes makes room."""
    async with bystander(url) as progress:
        second = await talk(url)
        for _ in range(5):
            found, body = await refusal(url)
            assert (found, body["code"]) == (status, "too_many_connections")
            assert body["retry_after"] > 0
        before = progress()
        await until(lambda: progress() > before)
        await second.close()
        await until(lambda: gateway.connections == 1)
        async with await talk(url) as third:
            await third.start("third")


@pytest.mark.parametrize("given", [{"max_connections": 3}])
async def test_connections_that_ask_for_nothing(app: AsrApplication, gateway: Gateway) -> None:
    """Past the limit they are closed; those that became WebSockets are not among them."""
    server = Server(app)
    socket, port = bind_unused_port()
    server.add_socket(socket)
    async with await talk(f"ws://127.0.0.1:{port}/ws/asr") as client:
        await client.start("s")
        idle = [await TCPClient().connect("127.0.0.1", port) for _ in range(3)]
        await until(lambda: len(server._connections) == 3)
        more = await TCPClient().connect("127.0.0.1", port)
        with pytest.raises(StreamClosedError):
            await more.read_bytes(1)
        await client.chunk("s", 0, PIECE)
        idle.pop().close()
        await until(lambda: len(server._connections) == 2)
        async with await talk(f"ws://127.0.0.1:{port}/ws/asr"):
            pass
        for stream in idle:
            stream.close()
    server.stop()


@pytest.mark.parametrize("given", [{"max_connection_sessions": 2, "max_sessions": 3}])
async def test_too_many_sessions(url: str, worker: Pretender, gateway: Gateway) -> None:
    async with await talk(url) as first, await talk(url) as second:
        for sid in ("a", "b"):
            await first.start(sid)
        await first.send({"action": "start", "session_id": "c"})
        assert "connection" in (await error(first, "too_many_sessions"))["message"]
        await second.start("c")
        await second.send({"action": "start", "session_id": "d"})
        refused = await error(second, "too_many_sessions")
        assert "server" in refused["message"]
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
async def test_too_large_a_chunk_costs_that_chunk(url: str, worker: Pretender) -> None:
    async with await talk(url) as client:
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


@pytest.mark.parametrize("given", [{"max_session": 1.0}])
async def test_too_long_a_session_is_ended_with_what_it_has(
    url: str, worker: Pretender, gateway: Gateway, database_url: str
) -> None:
    """What was acknowledged is served: its final result comes."""
    async with await talk(url) as client:
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
        await until(gateway.recorder.settled)
        assert stored(database_url, "s") == ("interrupted", "all of it", 10)


@pytest.mark.parametrize("given", [{"max_session": 1.0}])
async def test_frames_that_come_together_are_limited_one_by_one(url: str, worker: Pretender) -> None:
    async with await talk(url) as client:
        await client.start("s", mode="stream", format="pcm_s16le")
        await client.write(b"".join(frame(BINARY, PIECE) for _ in range(12)))
        refused = await error(client, "session_too_long")
        assert (refused["session_id"], refused["chunk_index"]) == ("s", 10)
        await error(client, "session_finished")
        assert [ack["chunk_index"] for ack in client.of("s", "ack")[1:]] == list(range(10))


@pytest.mark.parametrize("given", [{"session_idle_timeout": 0.5}])
async def test_a_session_without_audio_is_ended(url: str, worker: Pretender, gateway: Gateway) -> None:
    async with await talk(url) as client:
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
async def test_an_idle_connection_is_closed(url: str, worker: Pretender) -> None:
    """Unless a result is owed to it."""
    async with await talk(url) as client, await talk(url) as owed:
        await owed.start("s")
        await owed.chunk("s", 0, PIECE)
        await error(client, "idle_timeout")
        await until(lambda: client.closed)
        assert client.connection.close_code == 1008
        assert not owed.closed
        await worker.take("s")
        await worker.chunk("s", 0)
        await owed.find("s", "chunk_result")
        await error(owed, "idle_timeout")


@pytest.mark.parametrize("given", [{"max_speed": 1.0, "speed_burst": 1.0}])
async def test_audio_too_fast_by_far_is_refused(url: str, worker: Pretender, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the time after which it may be sent again; the session goes on with it."""
    monkeypatch.setattr(gateway_module, "MAX_WAIT", 0.1)
    async with bystander(url), await talk(url) as client:
        await client.start("s", format="pcm_s16le")
        await client.chunk("s", 0, bytes(32000 * 12))  # 11 s more than a burst
        await client.send(chunk("s", 1, PIECE))
        refused = await error(client, "too_fast")
        assert (refused["session_id"], refused["chunk_index"]) == ("s", 1)
        assert 8 < refused["retry_after"] <= 11
        monkeypatch.setattr(limits_module, "PATIENCE", 60.0)
        await client.chunk("s", 1, PIECE)
        assert list(await worker.audio("s", 2)) == ["1-0", "2-0"]


@pytest.mark.parametrize("given", [{"max_ahead": 2.0}])
async def test_a_flood_is_read_as_it_is_recognised_and_costs_no_memory(
    url: str, gateway: Gateway, worker: Pretender, monkeypatch: pytest.MonkeyPatch, redis_url: str
) -> None:
    """64 MB in one go, of which nothing is answered: what is spoken in the time is taken, and a few seconds more; the
    rest waits with its sender."""
    monkeypatch.setattr(gateway_module, "MAX_WAIT", 60.0)
    monkeypatch.setattr("asrserver.handlers.websocket.MAX_WAIT", 60.0)
    async with bystander(url) as progress, await talk(url) as client:
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


async def test_the_place_in_the_queue_is_told(url: str, worker: Pretender) -> None:
    async with await talk(url) as client:
        for number, sid in enumerate(("a", "b", "c")):
            ack = await client.call({"action": "start", "session_id": sid, "queue_position": True})
            assert ack == {"type": "ack", "session_id": sid, "status": "session_started", "queued": number}
        await worker.take("a", "b", "c")
        ack = await client.call({"action": "start", "session_id": "d", "queue_position": True})
        assert ack["queued"] == 0
        assert "queued" not in await client.call({"action": "start", "session_id": "e"})


@pytest.mark.parametrize("given", [{"max_queue": 100.0}])
async def test_past_the_backlog_no_session_starts_and_those_that_have_are_served(
    url: str, gateway: Gateway, worker: Pretender, redis_url: str
) -> None:
    """The audio that other gateways wait for counts too."""
    elsewhere = Broker(redis_url, "elsewhere")
    async with await talk(url) as client:
        await client.start("s", format="pcm_s16le")
        await client.chunk("s", 0, PIECE)
        elsewhere.heartbeat("gateway", {"backlog": 99.95})
        await until(lambda: gateway._backlog_elsewhere > 99)
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


# -- shares of keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shares", [KeyLimits(connections=2)])
async def test_a_key_s_connections_are_counted_over_all_gateways(
    url: str, other: str, keyed: Keyed, redis_url: str
) -> None:
    async with await talk(url, keyed.text) as first, await talk(other, keyed.text):
        for address in (url, other):
            status, body = await refusal(address, keyed.text)
            assert (status, body["code"]) == (429, "too_many_connections")
            async with await talk(address, keyed.free_text):
                pass
        await first.close()
        with look(redis_url) as client:
            await until(lambda: client.zcard(keys.held_key("connections", keyed.limited.id)) == 1)
        async with await talk(other, keyed.text):
            pass


@pytest.mark.parametrize("shares", [KeyLimits(sessions=2, starts_per_minute=4)])
async def test_a_key_s_sessions_and_starts_are_counted_over_all_gateways(
    url: str, other: str, keyed: Keyed, worker: Pretender, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quota, "minute", lambda now=None: 7)  # the test must not cross a minute
    async with (
        await talk(url, keyed.text) as here,
        await talk(other, keyed.text) as there,
        await talk(url, keyed.free_text) as free,
    ):
        await here.start("a")
        await there.start("b")
        await here.send({"action": "start", "session_id": "c"})
        assert "key" in (await error(here, "too_many_sessions"))["message"]
        await free.start("free")
        await here.send({"action": "finish", "session_id": "a"})
        await worker.take("a")
        await worker.final("a", "", 0)
        await here.find("a", "final_result")
        await there.start("c")
        await there.send({"action": "finish", "session_id": "b"})
        await worker.take("b")
        await worker.final("b", "", 0)
        await there.find("b", "final_result")
        await here.start("d")
        await there.send({"action": "finish", "session_id": "c"})
        await worker.take("c")
        await worker.final("c", "", 0)
        await there.find("c", "final_result")
        await there.send({"action": "start", "session_id": "e"})
        refused = await error(there, "rate_limited")
        assert 0 < refused["retry_after"] <= 60
        await free.start("free2")
        with look(redis_url) as client:  # what was refused holds nothing
            await until(lambda: client.zrange(keys.held_key("sessions", keyed.limited.id), 0, -1) == ["d"])


@pytest.mark.parametrize("shares", [KeyLimits(audio_per_minute=2.0)])
async def test_a_key_s_audio_is_charged_by_the_workers(
    url: str, other: str, keyed: Keyed, worker: Pretender, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Chunks, sessions and connections are refused until the minute is over; other keys do not notice."""
    monkeypatch.setattr("asrserver.gateway.admission.minute", lambda now=None: 7)
    monkeypatch.setattr(quota, "minute", lambda now=None: 7)
    monkeypatch.setattr("asrserver.broker.broker.minute", lambda now=None: 7)
    async with bystander(url, keyed.free_text), await talk(url, keyed.text) as client:
        await client.start("s", format="pcm_s16le")
        for index in range(3):
            await client.chunk("s", index, PIECE)
        await worker.take("s")
        for index, total in enumerate((0.8, 0.8, 2.0)):
            await worker.say("s", "chunk", f"{index + 1}-0", chunk_index=index, text="", duration=0.5, total=total)
        with look(redis_url) as redis:
            assert float(redis.get(keys.quota_key(keyed.limited.id, 7)) or 0) == 2.0
        while not any(message.get("code") == "quota_exceeded" for message in client.messages):
            index += 1
            await client.send(chunk("s", index, PIECE))
            await until(lambda i=index: any(m.get("chunk_index") == i for m in client.messages))  # type: ignore[misc]
        refused = await error(client, "quota_exceeded")
        assert (refused["session_id"], refused["chunk_index"]) == ("s", index)
        assert 0 < refused["retry_after"] <= 60
        client.messages.clear()
        await client.send({"action": "start", "session_id": "t"})
        await error(client, "quota_exceeded")
        assert (await refusal(other, keyed.text))[1]["code"] == "quota_exceeded"
        for name in ("asrserver.gateway.admission.minute", "asrserver.broker.broker.minute"):
            monkeypatch.setattr(name, lambda now=None: 8)
        monkeypatch.setattr(quota, "minute", lambda now=None: 8)
        await client.send(chunk("s", index, PIECE))  # the refused one, in the next minute
        await client.find("s", "ack", index)


async def test_audio_is_charged_once(redis_url: str) -> None:
    """Not for an event that is sent again, nor by an owner that was fenced off, nor again by the next owner."""
    w, v = Broker(redis_url, "w"), Broker(redis_url, "v")
    await w.open()
    assert await w.open_session("s", "n", {"gateway": "g", "owner": "k", "options": "{}"}, time.time() + 60)
    [(task, sid)] = await w.claim(None, 1, 0)
    first = await w.acquire(task, sid)
    assert first is not None

    def event(seq: int, total: float) -> dict[str, Any]:
        return {"type": "chunk", "seq": seq, "total": total, "chunk_index": seq}

    with look(redis_url) as client:

        def charged() -> float:
            return sum(float(client.get(key) or 0) for key in client.scan_iter("asr_quota:k:*"))

        assert await w.append_event(first, 1, event(1, 1.5), "0-1")
        first.counted = 0.0
        assert await w.append_event(first, 1, event(1, 1.5), "0-1")
        assert charged() == 1.5
        second = await v.acquire(task, sid)
        assert second is not None
        assert not await w.append_event(first, 2, event(2, 9.0), "0-1")
        assert await v.append_event(second, 1, event(2, 2.0), "0-1")
        assert charged() == 2.0
        assert await v.append_event(second, 2, event(3, 1.0), "0-1")  # a guess that was too high is not paid back
        assert charged() == 2.0
        for _ in range(2):
            assert await v.checkpoint(second, "0-1", 12.0, {"state": "{}"})  # quiet, of which there is no event
            assert charged() == 12.0
            second.counted = 2.0  # as if the reply was lost
        third = await w.acquire(task, sid)
        assert third is not None
        assert not await v.checkpoint(second, "0-1", 14.0, {"state": "{}"})
        assert await w.append_event(third, 1, event(4, 13.0), "0-1")
        assert charged() == 13.0
        assert all(0 < client.ttl(key) <= 300 for key in client.scan_iter("asr_quota:k:*"))
    await w.close()
    await v.close()


async def test_what_a_dead_gateway_held_runs_out(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = Broker(redis_url, "g")
    assert await broker.quota.hold("sessions", "k", "a", 1)
    assert await broker.quota.hold("sessions", "k", "a", 1)
    assert not await broker.quota.hold("sessions", "k", "b", 1)
    later = time.time() + 20
    monkeypatch.setattr(quota.time, "time", lambda: later)
    broker.quota.keep("sessions", "k", ["a"])
    monkeypatch.setattr(quota.time, "time", lambda: later + 20)
    assert not await broker.quota.hold("sessions", "k", "b", 1)
    monkeypatch.setattr(quota.time, "time", lambda: later + 31)
    assert await broker.quota.hold("sessions", "k", "b", 1)
    monkeypatch.undo()
    await broker.close()


async def test_a_quota_of_a_real_system(
    start: Callable[..., System], tmp_path: Path, utterances: list[Utterance], redis_url: str
) -> None:
    """Two gateways, a real worker that decodes: whichever gateway is asked knows."""
    made = Keyed(tmp_path / "keys.json", KeyLimits(audio_per_minute=6.0))
    system = start("run", "--gateways", "2", "--keys-file", str(made.file.path))
    await asyncio.get_running_loop().run_in_executor(None, system.wait_ready)
    async with await talk(system.url, made.text) as client, await talk(system.url, made.free_text) as free:
        await client.start("s")
        await free.start("free")
        index = 0
        while not any(message.get("code") == "quota_exceeded" for message in client.messages):
            assert index < 50  # a minute that ends meanwhile costs a few
            await client.send(chunk("s", index, utterances[0].wav))
            await until(
                lambda i=index: any(  # type: ignore[misc]
                    m.get("chunk_index") == i and m["type"] in ("chunk_result", "error") for m in client.messages
                )
            )
            index += 1
        assert (await error(client, "quota_exceeded"))["retry_after"] > 0
        await free.chunk("free", 0, utterances[1].wav)
        assert (await free.finish("free"))["text"] == utterances[1].text
        # A stream that is silent has no results; its audio does not count as waiting for ever.
        await free.start("silent", mode="stream")
        for number in range(30):
            await free.chunk("silent", number, PIECE)
        acknowledged = time.time()
        with look(redis_url) as redis:

            def nothing_waits() -> bool:
                beats = [orjson.loads(redis.get(key) or "{}") for key in redis.scan_iter("gateway:*:heartbeat")]
                return all(beat and beat["time"] > acknowledged and beat["backlog"] == 0 for beat in beats)

            await until(nothing_waits)
        final = await client.finish("s")
        assert final["chunk_count"] == index - 1
        assert final["text"] == " ".join([utterances[0].text] * (index - 1))


#: Bytes by which a gateway may grow while one of its limits is hammered at.
GROWTH = 32 * 2**20


@pytest.mark.gen_test(timeout=170)
async def test_others_do_not_feel_it(start: Callable[..., System], tmp_path: Path, utterances: list[Utterance]) -> None:
    """Each limit of a real system, reached often while somebody speaks: every chunk is acknowledged in order, the text
    is right, and the gateway does not grow."""
    options, keys = hostile.flags(tmp_path)
    system = start("run", "--workers", "1", *options)
    await asyncio.get_running_loop().run_in_executor(None, system.wait_ready)
    [gateway] = system.children("gateway")
    speech = b"".join(utterance.pcm for utterance in utterances)[: 24 * 32000]
    for attack, said in zip(hostile.ATTACKS, utterances, strict=False):
        target = hostile.Target(system.port, keys, speech)
        peer, sid = await target.bystander()
        before = gateway.memory_info().rss
        attacking = asyncio.ensure_future(attack.run(target))
        pieces = [said.pcm[at : at + 3200] for at in range(0, len(said.pcm), 3200)]
        index = 0
        try:
            while index < len(pieces) or target.tally[attack.code] < attack.often:
                await peer.send(chunk(sid, index, pieces[index] if index < len(pieces) else bytes(320)))
                ack = await peer.answer(sid, "ack", "error")
                assert ack.get("chunk_index") == index, (attack.limit, ack)
                assert gateway.memory_info().rss - before < GROWTH, attack.limit
                assert not attacking.done(), (attack.limit, attacking)
                await asyncio.sleep(0.02)
                index += 1
        finally:
            attacking.cancel()
            await asyncio.gather(attacking, return_exceptions=True)
        await peer.finish(sid)
        final = await peer.answer(sid, "final_result")
        assert (final["text"], final["chunk_count"]) == (said.text, index), attack.limit
        await peer.close()
