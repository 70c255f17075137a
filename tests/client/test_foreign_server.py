"""The Python client against a server that says what the test tells it to: refusals, close codes, unknown events."""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
import tornado.ioloop
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler
from tornado.websocket import WebSocketHandler

from asrserver.client import Client, ConnectionLost, HandshakeRefused, ServerError
from tests.client.support import cut
from tests.waiting import until

pytestmark = pytest.mark.gen_test(timeout=60)


@pytest.fixture
def told(io_loop: tornado.ioloop.IOLoop) -> Iterator[Callable[[type[RequestHandler]], str]]:
    """Return a function that serves a handler and returns its URL."""
    servers: list[HTTPServer] = []

    def serve(handler: type[RequestHandler]) -> str:
        server = HTTPServer(Application([("/", handler)]))
        [listener] = bind_sockets(0, "127.0.0.1")
        server.add_socket(listener)
        servers.append(server)
        return f"ws://127.0.0.1:{listener.getsockname()[1]}/"

    yield serve

    async def stop() -> None:
        for server in servers:
            server.stop()
            await server.close_all_connections()

    io_loop.run_sync(stop)


@pytest.mark.parametrize(("status", "again"), [(401, False), (403, False), (429, True), (503, True)])
async def test_refusals_before_the_upgrade(told: Callable[..., str], status: int, again: bool) -> None:
    """A permanent refusal is not retried; another one is, after the time that the server asked for."""
    loop = asyncio.get_running_loop()
    tries: list[float] = []

    class Refusing(WebSocketHandler):
        def prepare(self) -> None:
            tries.append(loop.time())
            if 1 < len(tries) < 4:
                self.set_status(status)
                self.set_header("Retry-After", "1")
                self.finish({})

        def on_message(self, message: str | bytes) -> None:
            sid = orjson.loads(message)["session_id"]
            self.write_message({"type": "ack", "session_id": sid, "status": "session_started"})
            if len(tries) < 4:
                self.close(1012)

    async with await Client.connect(told(Refusing)) as client:
        session = await client.start()
        if again:
            await until(lambda: len(tries) == 4)
            assert all(later - earlier >= 0.9 for earlier, later in itertools.pairwise(tries[1:]))
        else:
            with pytest.raises(HandshakeRefused, match=f"HTTP {status}"):
                await session.finish()
            assert len(tries) == 2


async def test_an_address_without_a_websocket(told: Callable[..., str]) -> None:
    """A web page answers with 200: the client does not retry, and the error says what is wrong."""

    class Page(RequestHandler):
        def get(self) -> None:
            self.write("<html>")

    with pytest.raises(HandshakeRefused, match="HTTP 200: the URL is not one of a WebSocket"):
        await Client.connect(told(Page), retry=True)


async def test_a_server_that_does_not_answer() -> None:
    """The server accepts the connection and stays silent: the timeout of an attempt includes the handshake."""
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(TimeoutError, match="during request"):
        await Client.connect(f"ws://127.0.0.1:{silent.getsockname()[1]}/", timeout=0.1)


@pytest.mark.parametrize(("code", "again"), [(1012, True), (1013, True), (1001, True), (1008, False), (1009, False)])
async def test_close_codes(told: Callable[..., str], code: int, again: bool) -> None:
    connections: list[WebSocketHandler] = []

    class Closing(WebSocketHandler):
        def open(self, *_args: str, **_kwargs: str) -> None:
            connections.append(self)

        def on_message(self, message: str | bytes) -> None:
            sid = orjson.loads(message)["session_id"]
            self.write_message({"type": "ack", "session_id": sid, "status": "session_started"})
            if len(connections) == 1:
                self.close(code, "because")

    async with await Client.connect(told(Closing)) as client:
        session = await client.start()
        if again:
            await until(lambda: len(connections) == 2)
        else:
            with pytest.raises(ConnectionLost, match=f"{code} because"):
                await session.finish()
            assert len(connections) == 1


async def test_closed_while_it_connects_again(told: Callable[..., str]) -> None:
    """A connection that is made during the closing is closed too, and not read forever."""
    dialled, dialled_again, go, closed = (asyncio.Event() for _ in range(4))

    class Slow(WebSocketHandler):
        async def prepare(self) -> None:
            if dialled.is_set():
                closed.clear()
                dialled_again.set()
                await go.wait()
            dialled.set()

        def on_close(self) -> None:
            closed.set()

    client = await Client.connect(told(Slow))
    await until(lambda: client.connection is not None)
    cut(client)
    await dialled_again.wait()
    closing = asyncio.ensure_future(client.close())
    await asyncio.sleep(0)  # it has begun
    go.set()
    await closing
    await closed.wait()
    with pytest.raises(ConnectionLost):
        await client.start()


async def test_events_of_other_types(told: Callable[..., str]) -> None:
    """The caller gets each of them once; of unread partial results only the newest."""
    done = asyncio.Event()

    class Talking(WebSocketHandler):
        def on_message(self, message: str | bytes) -> None:
            sid = {"session_id": orjson.loads(message)["session_id"]}
            if orjson.loads(message)["action"] != "start":
                return
            self.write_message({**sid, "type": "ack", "status": "session_started"})
            for event in (
                {"type": "partial_result", "text": "a"},
                {"type": "partial_result", "text": "a b"},
                {"type": "segment_result", "seq": 1, "text": "a b"},
                {"type": "partial_result", "text": "c"},
                {"type": "segment_result", "seq": 1, "text": "a b"},
                {"type": "speech_started"},
                {"type": "final_result", "seq": 2, "text": "a b"},
            ):
                self.write_message({**sid, **event})
            done.set()

    async with await Client.connect(told(Talking)) as client:
        session = await client.start()
        await done.wait()
        await until(lambda: not client._sessions)
        events = [(event["type"], event.get("text")) async for event in session.events()]
    assert events == [
        ("partial_result", "a b"),
        ("segment_result", "a b"),
        ("partial_result", "c"),
        ("speech_started", None),
        ("final_result", "a b"),
    ]


@pytest.mark.parametrize("times", [1, 2])
async def test_own_resume_that_comes_late_is_no_other_client(told: Callable[..., str], times: int) -> None:
    """A resume that waited at one gateway takes the session from the next one, once: then another client has it."""
    connections: list[WebSocketHandler] = []
    asked: list[tuple[int, str]] = []  # number of the connection, action

    class Gateways(WebSocketHandler):
        def open(self) -> None:
            connections.append(self)
            self.moves = 0

        def on_message(self, message: str | bytes) -> None:
            said = orjson.loads(message)
            number = len(connections)
            asked.append((number, said["action"]))
            if number == 1:
                self.tell(said, "session_started")
                self.close(1012)
            elif number == 2:
                self.close(1012)  # the answer is lost
            elif said["action"] == "resume":
                self.tell(said, "session_resumed", state="recording", next_chunk_index=0)
                if self.moves < times:
                    self.moves += 1
                    error = {"code": "session_moved", "message": "the session was resumed elsewhere"}
                    self.write_message({"type": "error", "session_id": said["session_id"], **error})

        def tell(self, said: dict[str, Any], status: str, **more: Any) -> None:
            self.write_message({"type": "ack", "session_id": said["session_id"], "status": status, **more})

    async with await Client.connect(told(Gateways)) as client:
        session = await client.start()
        await until(lambda: len(asked) == 4)
        assert asked == [(1, "start"), (2, "resume"), (3, "resume"), (3, "resume")]
        if times == 2:
            with pytest.raises(ServerError, match="session_moved"):
                await session.finish()
