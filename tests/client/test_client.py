"""The Python client: it reconnects, resumes, sends again, and delivers every result to its caller once."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest

from asrserver.broker.gateway_side import GatewayBroker
from asrserver.client import Client, ClientSession, ConnectionLost, ConnectionObserver, ServerError
from asrserver.errors import Refused, Unavailable
from asrserver.gateway.held_bytes import LARGE_BYTES
from asrserver.gateway.session import Session
from asrserver.handlers.websocket import NativeWebSocketHandler
from tests.client.support import cut
from tests.fakes import FakeWorker
from tests.gateways import Gateways
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)

AUDIO = bytes(range(256)) * 8


@asynccontextmanager
async def obedient(worker: FakeWorker, sid: str) -> AsyncIterator[None]:
    """Run a worker that answers every chunk of a session with its bytes, and its end with a final result."""

    async def work() -> None:
        await worker.take(sid)
        cursor, count = "0-1", 0
        while True:
            for entry in (await worker.broker.read_audio({sid: cursor}, 100)).get(sid, []):
                cursor = entry.id
                if entry.flush:
                    await worker.say(sid, "flushed", entry.id, number=entry.flush)
                    continue
                if entry.data is None:
                    await worker.say(sid, "final", entry.id, text=str(count), status=entry.status, chunk_count=count)
                    return
                index, count = int(entry.id.split("-")[0]) - 1, count + 1
                text = entry.data.decode()
                await worker.say(sid, "chunk", entry.id, chunk_index=index, text=text, duration=0.1)
            await asyncio.sleep(0.005)

    task = asyncio.get_running_loop().create_task(work())
    yield
    await task


@pytest.mark.parametrize("seed", range(3))
async def test_a_connection_cut_at_random_points(gateways: Gateways, worker: FakeWorker, seed: int) -> None:
    """The client changes the gateway each time; every chunk is recognised once, all results come once and in order."""
    dice = random.Random(seed)
    cuts = {dice.randrange(300) for _ in range(20)}
    async with await Client.connect([server.url for server in gateways]) as client:
        session = await client.start("s")
        async with obedient(worker, "s"):

            async def send() -> None:
                for index in range(300):
                    assert await session.send(str(index).encode()) == index
                    if index % 10 == 0:
                        await session.flush()
                    if index in cuts:
                        await until(lambda: client.connection)
                        cut(client)
                    elif dice.random() < 0.2:
                        await asyncio.sleep(0)
                await session.end()

            sending = asyncio.ensure_future(send())
            events = [event async for event in session.events()]
            await sending
    assert [event["seq"] for event in events] == list(range(1, 332))
    expected: list[tuple[str, Any]] = []
    for index in range(300):
        expected.append(("chunk_result", str(index)))
        if index % 10 == 0:
            expected.append(("flushed", index // 10 + 1))
    assert [(event["type"], event.get("text", event.get("number"))) for event in events[:-1]] == expected
    assert (events[-1]["text"], events[-1]["status"]) == ("300", "done")


async def test_a_new_connection_is_one_without_answers(gateways: Gateways, worker: FakeWorker) -> None:
    """`opening` is set with the connection: an observer must not take the session for resumed before it is."""
    async with await Client.connect([server.url for server in gateways]) as client:
        session = await client.start()
        for _ in range(5):
            before = client.connection
            cut(client)
            while client.connection in (before, None):
                await asyncio.sleep(0)
            assert session.opening
            await until(lambda: not session.opening)
        await session.send(b"one")
        async with obedient(worker, session.id):
            assert (await session.finish())["text"] == "1"


async def test_chunks_go_as_binary_frames_and_are_acknowledged_together(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds before a connection is lost and after it."""
    texts: list[str] = []
    text = NativeWebSocketHandler.take_text

    def seen(handler: NativeWebSocketHandler, message: str) -> Awaitable[Any] | None:
        texts.append(message)
        return text(handler, message)

    monkeypatch.setattr(NativeWebSocketHandler, "take_text", seen)
    acks: list[int] = []

    class Listens(ConnectionObserver):
        def received(self, event: dict[str, Any]) -> None:
            if event.get("status") == "received":
                assert event["through"]
                acks.append(event["chunk_index"])

    async with await Client.connect([server.url for server in gateways], observer=Listens()) as client:
        session = await client.start()
        for turn in range(1, 3):
            for index in range(40):
                assert await session.send(b"%d" % index) == 40 * (turn - 1) + index
            await until(lambda turn=turn: acks and acks[-1] == 40 * turn - 1)
            cut(client)
        async with obedient(worker, session.id):
            assert (await session.finish())["text"] == "80"
        assert [orjson.loads(text)["action"] for text in texts] == ["start", "resume", "resume", "finish"]
        assert len(acks) < 20


async def test_many_sessions_on_a_connection_that_is_cut(gateways: Gateways, worker: FakeWorker) -> None:
    """All are resumed, including one that is being started and one that is being finished."""
    async with await Client.connect([server.url for server in gateways]) as client:
        sessions = [await client.start(f"s{number}") for number in range(8)]
        await sessions[0].end()
        cut(client)
        late = asyncio.ensure_future(client.start("late"))
        for session in sessions[1:]:
            await session.send(session.id.encode())
        sessions.append(await late)
        await sessions[-1].send(b"late")
        for session in sessions:
            async with obedient(worker, session.id):
                final = await session.finish()
            assert (final["text"], final["status"]) == ("0" if session is sessions[0] else "1", "done")


async def test_a_connection_that_is_lost_behind_the_end(gateways: Gateways, worker: FakeWorker) -> None:
    """The server has the end, and is not told of it again: it would refuse that."""
    async with await Client.connect([server.url for server in gateways]) as client:
        session = await client.start("s")
        await session.send(b"one")
        await session.end()
        await worker.take("s")
        assert await worker.ended("s") == "done"
        cut(client)
        await until(lambda: not client.connection)
        await until(lambda: client.connection and not session.opening)
        await client.start("other")  # whatever was answered to the first session was answered by then
        await worker.chunk("s", 0)
        await worker.final("s")
        assert [event["type"] async for event in session.events()] == ["chunk_result", "final_result"]


async def test_a_start_whose_answer_is_lost(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session exists already: the client resumes it and starts no second one."""
    one, two = gateways
    open_session = one.gateway.broker.open_session

    async def cut_off(*args: Any) -> bool:
        made = await open_session(*args)
        cut(client)
        return made

    monkeypatch.setattr(one.gateway.broker, "open_session", cut_off)
    async with await Client.connect([one.url, two.url]) as client:
        session = await client.start()
        await session.send(b"hello")
        async with obedient(worker, session.id):
            assert (await session.finish())["text"] == "1"


async def test_what_the_server_cannot_write_now_is_sent_again(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server asks for a pause; nothing is lost, and the caller notices nothing."""
    broker = gateways[0].gateway.broker
    append = broker.append
    tries = iter(range(3))

    def unlucky(sid: str, index: int, *args: Any) -> None:
        if index == 2 and next(tries, None) is not None:
            args[-1](Unavailable("broker_full", "full", 0.01))
        else:
            append(sid, index, *args)

    monkeypatch.setattr(broker, "append", unlucky)
    async with await Client.connect(gateways[0].url) as client:
        session = await client.start("s")
        async with obedient(worker, "s"):
            for index in range(10):
                await session.send(str(index).encode())
            await session.end()
            events = [event async for event in session.events()]
    assert [event["text"] for event in events] == [*map(str, range(10)), "10"]


async def test_a_chunk_refused_before_the_connection_was_lost(gateways: Gateways, worker: FakeWorker) -> None:
    """It stays refused; later chunks are not affected."""
    async with await Client.connect([server.url for server in gateways]) as client:
        session = await client.start("s")
        await session.send(b"0")
        await session.send(b"")  # refused
        await session.send(bytes(2 << 20))  # refused unread, as the largest there is
        events = session.events()
        assert {(await anext(events))["code"] for _ in range(2)} == {"empty_chunk", "message_too_large"}
        cut(client)
        await session.send(b"3")
        async with obedient(worker, "s"):
            await session.end()
            assert [event["text"] async for event in events] == ["0", "3", "2"]
        assert not session._unacknowledged


@pytest.mark.parametrize("interval", [0.0, 0.5])
async def test_refusals_are_events(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch, interval: float
) -> None:
    """Of a chunk for now, of one unread, and of a flush. The session goes on, whatever its window is."""
    gateway, full = gateways[0].gateway, iter((True,))
    admit = gateway.intake._admit

    def refuse(session: Session, index: int, data: bytes) -> None:
        if data == b"1":
            raise Refused(429, "too_fast", "too fast", retry_after=0.1, **session.order.where(index))
        admit(session, index, data)

    def grew(owner: str, before: int, now: int) -> bool:
        gateway.held.add(owner, now - before)
        return now > LARGE_BYTES and next(full, False)

    monkeypatch.setattr(gateway.intake, "_admit", refuse)
    monkeypatch.setattr(gateway.intake, "offer_run", lambda *_: None)
    monkeypatch.setattr(gateway.held, "grew", grew)
    monkeypatch.setattr("asrserver.gateway.session.MAX_FLUSHES", 0)
    async with await Client.connect(gateways[0].url, window=1) as client:
        session = await client.start("s", ack_interval=interval)
        for data in (b"0", b"1", bytes(600_000), b"3"):
            await session.send(data)
        await session.flush()
        async with obedient(worker, "s"):
            await session.end()
            events = [event async for event in session.events()]
    errors = [(event["code"], event["chunk_index"]) for event in events if event["type"] == "error"]
    assert errors == [("too_fast", 1), ("overloaded", None), ("too_fast", None)]
    assert [(error.event["code"], error.event["chunk_index"]) for error in session.errors] == errors
    assert [event["text"] for event in events if "text" in event] == ["0", "3", "2"]
    assert events[-1]["status"] == "interrupted"


async def test_who_reads_no_events_learns_what_could_not_be_recognised(
    gateways: Gateways, worker: FakeWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text and status of the final result are those of a recording in which nobody speaks."""
    monkeypatch.setattr("asrserver.client.session.MAX_ERRORS", 2)
    async with await Client.connect(gateways[0].url) as client:
        session = await client.start("s")
        for _ in range(3):
            await session.send(b"no audio")
        finishing = asyncio.create_task(session.finish())
        await worker.take("s")
        for index in range(3):
            await worker.say("s", "error", chunk_index=index, code="not_audio", message="this is text, not audio")
        await worker.final("s", "")
        final = await finishing
    assert (final["text"], final["status"]) == ("", "done")
    assert [str(error) for error in session.errors] == ["not_audio: this is text, not audio"] * 2


async def test_a_defect_while_chunks_are_written(gateways: Gateways, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody awaits that task: whoever waits for the session gets the exception."""
    async with await Client.connect(gateways[0].url) as client:
        session = await client.start("s")

        async def broken(*_: Any) -> None:
            raise IndexError("deque index out of range")

        monkeypatch.setattr(client.connection, "write", broken)
        await session.flush()
        with pytest.raises(IndexError, match="deque"):
            await anext(session.events())
        with pytest.raises(IndexError, match="deque"):
            await session.send(b"x")


async def test_the_buffer_of_what_is_not_acknowledged_is_bounded(
    gateways: Gateways, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`send` waits and `send_nowait` sends nothing, also while there is no connection."""
    monkeypatch.setattr("asrserver.client.client.FIRST_BACKOFF", 1000.0)
    monkeypatch.setattr("asrserver.client.session.WINDOW_BYTES", 5000)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    client = await Client.connect(gateways[0].url, window=4)
    small, large = await client.start("small"), await client.start("large")
    cut(client)
    await until(lambda: client.connection is None)
    sending = [asyncio.ensure_future(send_for_ever(small, b"x")), asyncio.ensure_future(send_for_ever(large, AUDIO))]
    await until(lambda: small.next_index == 4 and large.next_index == 3)
    for _ in range(10):
        await asyncio.sleep(0)
    assert small.send_nowait(b"x") is large.send_nowait(b"x") is None
    assert (small.next_index, large.next_index) == (4, 3)
    await client.close()
    for task in sending:
        with pytest.raises(ConnectionLost):
            await task


async def send_for_ever(session: ClientSession, data: bytes) -> None:
    while True:
        await session.send(data)


# -- what cannot go on


async def test_a_session_that_was_taken_away(gateways: Gateways) -> None:
    """Another client resumes it: the caller gets an error, and the other sessions continue."""
    async with await Client.connect(gateways[0].url) as mine, await Client.connect(gateways[1].url) as other:
        session, kept = await mine.start("s"), await mine.start("kept")
        await session.end()
        thief = ClientSession(other, "s", {})
        thief.opened.set_result(None)
        other._sessions["s"] = thief
        thief.connected(other.connection)
        with pytest.raises(ServerError, match="session_moved"):
            await session.finish()
        await kept.send(b"x")
        await until(lambda: not kept._unacknowledged)


async def test_a_session_that_is_gone_when_the_client_comes_back(gateways: Gateways) -> None:
    async with await Client.connect([server.url for server in gateways]) as client:
        session = await client.start("s")
        broker: GatewayBroker = gateways[0].gateway.broker
        await broker.pipeline.submit("FLUSHALL")
        cut(client)
        with pytest.raises(ServerError, match="no_session"):
            await session.finish()
        with pytest.raises(ServerError, match="no_session"):
            await session.send(b"x")
        await client.start("next")


async def test_nobody_answers(gateways: Gateways) -> None:
    """At first: the system's error. Later: ConnectionLost after `reconnect_timeout`, for every waiting call."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        nobody = f"ws://127.0.0.1:{taken.getsockname()[1]}/ws/asr"
    with pytest.raises(OSError, match="refused"):
        await Client.connect(nobody)
    client = await Client.connect([nobody, gateways[0].url], reconnect_timeout=0.5)
    session = await client.start("s")
    client._urls = [nobody]
    cut(client)
    with pytest.raises(ConnectionLost, match="no connection for"):
        await session.finish()
    with pytest.raises(ConnectionLost):
        await client.start()
    await client.close()


async def test_a_url_without_the_path_is_told_it(gateways: Gateways) -> None:
    async with await Client.connect(gateways[0].url.removesuffix("/ws/asr")) as client:
        with pytest.raises(ConnectionLost, match="1008 the protocol of this message is spoken at the path /ws/asr"):
            await client.start(mode="stream")


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "http://127.0.0.1:8080/ws/asr", "localhost", ""])
async def test_what_is_no_url_of_a_websocket_is_called_so(url: str) -> None:
    with pytest.raises(ValueError, match=f"'{url}' is no URL of a WebSocket, such as ws://"):
        await Client.connect(["ws://127.0.0.1:9", url])


async def test_errors_of_a_start_are_its_caller_s(gateways: Gateways) -> None:
    """`start` raises them; a misspelt option is one."""
    async with await Client.connect(gateways[0].url) as client:
        for options, code in (
            ({"mode": "dance"}, "bad_option"),
            ({"session_id": "a b"}, "bad_id"),
            ({"langauge": "en"}, "unknown_option: 'langauge' is unknown .did you mean language"),
        ):
            with pytest.raises(ServerError, match=code):
                await client.start(**options)
        await client.start("s")
        async with await Client.connect(gateways[1].url) as other:
            with pytest.raises(ServerError, match="session_exists"):
                await other.start("s")
        with pytest.raises(ValueError, match="in use"):
            await client.start("s")
        assert list(client._sessions) == ["s"]


async def test_close_before_anything_was_read(gateways: Gateways) -> None:
    """A client that closes right after connecting does not hang."""
    for _ in range(3):
        client = await Client.connect(gateways[0].url)
        async with asyncio.timeout(20):
            await client.close()


async def test_retry() -> None:
    """With `retry` the client waits for a server that does not run yet, and gives up after `reconnect_timeout`."""
    refusals: list[Exception] = []

    class Counting(ConnectionObserver):
        def refused(self, reason: Exception, pause: float) -> None:
            refusals.append(reason)

    with pytest.raises(ConnectionLost):
        await Client.connect("ws://127.0.0.1:9/", reconnect_timeout=0.2, retry=True, observer=Counting())
    assert len(refusals) > 1
