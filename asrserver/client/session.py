"""One session of the client: chunks in, events out, over as many connections as it takes."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any

import orjson
from tornado.websocket import WebSocketClosedError

from asrserver.client.connection import ClientConnection
from asrserver.client.errors import Event, ServerError
from asrserver.protocol.frames import BINARY, TEXT, FrameProtocol, StreamClosedError
from asrserver.protocol.native import HEADER

if TYPE_CHECKING:
    from asrserver.client.client import Client

#: Chunks of a session that may wait for their acknowledgement, and their bytes; `send` waits for room.
WINDOW = 32
WINDOW_BYTES = 32 * 2**20

#: Seconds for which acknowledgements may wait for each other, where the window has room for it.
ACK_INTERVAL = 0.5

#: Longest pause in seconds before a refused start or resume is tried again, beside what the server asks for.
RETRY_JITTER = 0.5

#: Errors after which a session cannot be had (any more).
LOST = frozenset({"session_moved", "session_gone", "no_session"})


class ClientSession:
    """One session: chunks in, events out. Events wait until they are read, of the partial ones only the newest."""

    def __init__(self, client: Client, sid: str, options: dict[str, Any]) -> None:
        self.id = sid
        self.next_index = 0
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._client = client
        self._options = options
        self._channel = next(client.channels)
        self._addressed = False  # the server takes its chunks as binary frames
        self._last_seq = 0
        self._unacknowledged: dict[int, bytes] = {}
        self._bytes = 0
        self._passed: set[int] = set()  # indexes that were refused, and are passed over after a resume
        self._ended = False
        self._failure: Exception | None = None
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()  # for events()
        self._room = asyncio.Event()  # for send()
        self._more = asyncio.Event()  # for the pump
        self._index = 0  # of the next chunk that is written on this connection
        self._wire: FrameProtocol | None = None  # where the pump has nothing to do, and `send` may write
        self.opening = True  # there is no answer yet to a start or a resume on this connection
        self._work: asyncio.Task[None] | None = None  # opens the session, or pumps its chunks
        self._tries = 0  # of start
        self._trying_since: float | None = None

    async def send(self, data: bytes) -> int:
        """Send the next chunk, once there is room for it; its index. Raises ServerError, ConnectionLost."""
        while (index := self.send_nowait(data)) is None:
            self._room.clear()
            await self._room.wait()
        return index

    def send_nowait(self, data: bytes) -> int | None:
        """The same, but None where there is no room for it yet: then it is not sent."""
        if self._failure is not None:
            raise self._failure
        waiting = len(self._unacknowledged)
        if waiting and (waiting >= self._client.window or self._bytes >= WINDOW_BYTES):
            return None
        index, self.next_index = self.next_index, self.next_index + 1
        self._unacknowledged[index] = data
        self._bytes += len(data)
        wire = self._wire
        if wire is not None and self._addressed and self._index == index and not wire.blocked:
            self._index += 1
            try:  # noqa: SIM105  # suppress is three calls a chunk
                wire.send(BINARY, HEADER.pack(self._channel, index) + data)
            except StreamClosedError:
                pass  # the client notices, and connects again
        else:
            self._more.set()
        return index

    async def end(self) -> None:
        """Say that no more audio comes; `final_result` follows."""
        self._ended = True
        self._more.set()

    async def events(self) -> AsyncIterator[Event]:
        """Every event up to and with `final_result`, whatever its type; raises ServerError, ConnectionLost.

        The final result's `status` is `interrupted` if the client was away for too long: audio may be missing.
        """
        while True:
            while not self._events:
                if self._failure is not None:
                    raise self._failure
                self._news.clear()
                await self._news.wait()
            event = self._events.popleft()
            yield event
            if event["type"] == "final_result":
                return

    async def finish(self) -> Event:
        """End the session and wait for its `final_result`."""
        await self.end()
        async for event in self.events():
            last = event
        return last

    # -- for the client ------------------------------------------------------------------------------------------

    def connected(self, connection: ClientConnection | None) -> None:
        """There is a connection: open the session on it."""
        if connection is not None:
            self._reopen(connection)

    def disconnected(self) -> None:
        """The connection is gone, or the session is over: nothing more can be written."""
        self._wire = None
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def fail(self, error: Exception) -> None:
        """The session cannot go on."""
        self._failure = error
        if not self.opened.done():
            self.opened.set_exception(error)
        for waiting in (self._news, self._room, self._more):
            waiting.set()
        self._client.forget(self)

    def take(self, event: Event) -> None:
        """An event of this session, or of none."""
        kind, index = event["type"], event.get("chunk_index")
        status = event.get("status")
        if kind == "ack" and status in ("session_started", "session_resumed"):
            self._addressed = event.get("channel") == self._channel  # older servers know none
            self._live(event.get("next_chunk_index", 0))
        elif kind == "ack" and event.get("through"):
            self._acknowledged_below(event["chunk_index"] + 1)
        elif kind == "ack":
            self._acknowledged(index)
        elif kind == "error" and "seq" not in event:
            self._error(event)
        elif event.get("seq", self._last_seq + 1) > self._last_seq:
            self._last_seq = event.get("seq", self._last_seq)
            self._acknowledged(index)
            self._put(event)
            if kind == "final_result":
                self._failure = ServerError({"code": "session_finished", "message": "the session is over"})
                self._room.set()
                self._client.forget(self)

    # -- inside --------------------------------------------------------------------------------------------------

    def _do(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        async def run() -> None:
            with contextlib.suppress(WebSocketClosedError, StreamClosedError):  # the reader notices, and connects again
                await work(*arguments)

        self.disconnected()
        self._work = asyncio.get_running_loop().create_task(run())

    def _reopen(self, connection: ClientConnection, pause: float = 0.0) -> None:
        self.opening = True  # from now on, and not from the task's first step on: it is another connection
        self._do(self._open, connection, pause)

    async def _open(self, connection: ClientConnection, pause: float) -> None:
        await asyncio.sleep(pause)
        link = {"session_id": self.id, "channel": self._channel, "ack_interval": self._ack_interval}
        if self.opened.done():
            message = {"action": "resume", "last_seq": self._last_seq, **link}
        else:
            self._tries += 1
            message = {"action": "start", **self._options, "resume": True, **link}
        await connection.write(message)

    @property
    def _ack_interval(self) -> float:
        interval: float = self._options.get("ack_interval", ACK_INTERVAL if self._client.window >= WINDOW else 0.0)
        return interval

    def _live(self, following: int) -> None:
        """The session is on this connection, and what follows is the chunk `following`."""
        self.opening, self._trying_since = False, None
        if not self.opened.done():
            self.opened.set_result(None)
        self._acknowledged_below(following)
        if self._client.connection is not None:
            self._do(self._pump, self._client.connection, following)

    async def _pump(self, connection: ClientConnection, index: int) -> None:
        """Write the chunks from `index` on, and the end; where nothing waits, `send` writes by itself."""
        wire, self._index = connection.wire, index
        while True:
            while self._index < self.next_index:
                index, self._index = self._index, self._index + 1
                data = self._unacknowledged.get(index)
                if data is None:  # refused before the connection was lost: the server must be told again
                    self._passed.add(index)
                if self._addressed:
                    wire.send(BINARY, HEADER.pack(self._channel, index) + (data or b""))
                else:
                    wire.send(TEXT, orjson.dumps(self._chunk(index, data or b"")))
                await wire.drained()
            if self._ended:
                await connection.write({"action": "finish", "session_id": self.id})
                return
            self._wire = wire
            self._more.clear()
            await self._more.wait()
            self._wire = None

    def _chunk(self, index: int, data: bytes) -> dict[str, Any]:
        audio = b64encode(data).decode()
        return {"action": "chunk", "session_id": self.id, "chunk_index": index, "audio_data": audio}

    def _acknowledged_below(self, following: int) -> None:
        for index in [index for index in self._unacknowledged if index < following]:
            self._acknowledged(index)

    def _acknowledged(self, index: int | None) -> None:
        """The chunk was taken, or refused for good."""
        data = self._unacknowledged.pop(index, None) if index is not None else None
        if data is not None:
            self._bytes -= len(data)
            self._room.set()

    def _put(self, event: Event) -> None:
        if event["type"] == "partial_result" and self._events and self._events[-1]["type"] == "partial_result":
            self._events.pop()
        self._events.append(event)
        self._news.set()

    def _error(self, event: Event) -> None:
        """An error that is no result: of a start, a resume, a chunk, or the whole session."""
        code, index = event["code"], event.get("chunk_index")
        if code == "session_detached":
            return  # of what was on its way when an error asked to resume
        opening = self.opening and index is None
        if event.get("resumable") or (opening and "retry_after" in event):
            self._try_again(event)
        elif opening and code == "session_exists" and self._tries > 1:
            # Our start arrived, its answer did not.
            self.opened.set_result(None)
            self.connected(self._client.connection)
        elif opening or code in LOST:
            self.fail(ServerError(event))
        elif index in self._passed:
            self._passed.discard(index)
        else:
            if code == "message_too_large" and self._unacknowledged:
                index = max(self._unacknowledged, key=lambda index: len(self._unacknowledged[index]))
            self._acknowledged(index)
            self._put(event)

    def _try_again(self, event: Event) -> None:
        now = time.monotonic()
        self._trying_since = self._trying_since or now
        if now - self._trying_since > self._client.patience:
            self.fail(ServerError(event))
        elif self._client.connection is not None:
            pause = event.get("retry_after", 0.0) + random.uniform(0, RETRY_JITTER)
            self._reopen(self._client.connection, pause)
