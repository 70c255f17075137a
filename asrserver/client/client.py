"""The Python client: sessions that survive a bad network. The command line and the tests use it.

async with await Client.connect("ws://127.0.0.1:8080/ws/asr") as client:
    session = await client.start(language="en")
    await session.send(open("hello.wav", "rb").read())
    print((await session.finish())["text"])

When the connection is lost, the client connects again, to the next of its URLs, and resumes its sessions: chunks that
were not acknowledged are sent again, and every result comes to the caller once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, cast

import orjson
from tornado import httpclient
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError

from asrserver.protocol.frames import BINARY, HEADER, TEXT, StreamClosedError, Wire

#: Chunks of a session that may wait for their acknowledgement, and their bytes; `send` waits for room.
WINDOW = 32
WINDOW_BYTES = 32 * 2**20

#: Seconds for which acknowledgements may wait for each other, where the window has room for it.
ACK_INTERVAL = 0.5

#: Seconds without a connection after which it is given up.
PATIENCE = 60.0

#: Longest pauses between tries to connect, in seconds: the first, and the last. Each is a random part of its longest
#: (full jitter), or all clients of a gateway that stops would be at the next one in the same moment.
FIRST_PAUSE = 0.5
LAST_PAUSE = 8.0

#: Seconds between pings: a connection without a pong is half open, and lost.
PING = 10.0

#: Close codes (RFC 6455, 7.4.1) after which trying again is no use: what this client says or is, is refused.
REFUSED = frozenset({1002, 1003, 1007, 1008, 1009, 1010})

#: HTTP statuses below 500 that are worth another try.
NOT_YET = frozenset({408, 425, 429})

#: Errors after which a session cannot be had (any more).
LOST = frozenset({"session_moved", "session_gone", "no_session"})

Event = dict[str, Any]


def authorization(key: str) -> dict[str, str]:
    """The header that shows an API key; none for an empty one."""
    return {"Authorization": f"Bearer {key}"} if key else {}


class ServerError(Exception):
    """Raised for an error the server reported: `event` is all of it."""

    def __init__(self, event: Event) -> None:
        super().__init__(f"{event.get('code', 'error')}: {event.get('message', '')}")
        self.event = event


class ConnectionLost(Exception):
    """Raised when the connection ended, and could not be had again, before what was waited for came."""


class Watch:
    """Is told what happens to a client, as it happens and before the client makes something of it.

    For those who must know more than a caller: a load tester, say. Override what is wanted.
    """

    def connected(self, seconds: float) -> None:
        """There is a connection, made in so many seconds: the first, or another after `lost`."""

    def refused(self, reason: Exception, pause: float) -> None:
        """A try to connect failed, and there will be another; the server asked for a pause of so many seconds, or 0."""

    def lost(self, code: int | None) -> None:
        """The connection ended, with WebSocket's close code if it was closed, and not by the client."""

    def received(self, event: Event) -> None:
        """A message came."""


class Connection(WebSocketClientConnection):
    """Tornado's, with frames of our own; `heard` gets every message, and `ended` is set when no more comes."""

    def __init__(self, request: HTTPRequest, heard: Callable[[str | bytes], None]) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._heard = heard
        request.headers = HTTPHeaders(request.headers)
        proxy = httpclient._RequestProxy(request, HTTPRequest._DEFAULTS)  # both as websocket_connect does
        super().__init__(
            cast(HTTPRequest, proxy), self._hear, ping_interval=PING, ping_timeout=PING, max_message_size=1 << 26
        )

    def get_websocket_protocol(self) -> Wire:
        return Wire(self, mask_outgoing=True, params=self.params)

    @property
    def wire(self) -> Wire:
        """Raises WebSocketClosedError."""
        if self.protocol is None or self.protocol.is_closing():
            raise WebSocketClosedError
        return cast(Wire, self.protocol)

    async def write(self, message: Event) -> None:
        """Raises WebSocketClosedError."""
        wire = self.wire
        wire.send(TEXT, orjson.dumps(message))
        await wire.drained()

    def on_binaries(self, messages: list[bytes]) -> None:
        for message in messages:
            self.on_message(message)

    def _hear(self, message: str | bytes | None) -> None:
        if self.ended.done():
            return
        if message is None:
            self.ended.set_result(None)
            return
        try:
            self._heard(message)
        except Exception as exc:
            self.ended.set_exception(exc)


class Client:
    """A connection, made again whenever it is lost, and its sessions."""

    def __init__(
        self, urls: Sequence[str], key: str, timeout: float, patience: float, window: int, watch: Watch | None = None
    ) -> None:
        self.window = window
        self.patience = patience
        self._urls = urls
        self._turn = 0
        self._key = key
        self._timeout = timeout
        self._watch = watch or Watch()
        self.connection: Connection | None = None
        self.channels = itertools.count()
        self._sessions: dict[str, ClientSession] = {}
        self._failure: Exception | None = None
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        timeout: float = 10.0,
        key: str = "",
        *,
        patience: float = PATIENCE,
        window: int = WINDOW,
        insist: bool = False,
        watch: Watch | None = None,
    ) -> Client:
        """Connect to the first of the URLs that answers, with an API key if given.

        `timeout` is for each try, `patience` for being without a connection later, both in seconds; `window` is how
        many chunks of a session may wait for their acknowledgement. Raises what Tornado raises when none answers:
        OSError, HTTPClientError, TimeoutError. With `insist` there are more tries while there is patience, as after a
        lost connection, and then it is ConnectionLost.
        """
        urls = [url] if isinstance(url, str) else list(url)
        client = cls(urls, key, timeout, patience, window, watch)
        connection: Connection | None = None
        for left in reversed(range(len(urls))):
            try:
                connection = await client._dial()
                break
            except (OSError, HTTPClientError) as exc:
                if left:
                    continue
                if not insist or _for_good(exc):
                    raise
                connection = await client._again(None, client._refused(exc))
        client._task = asyncio.get_running_loop().create_task(client._run(connection))
        return client

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; sessions that are not finished are left to end as interrupted."""
        self._closing.set()
        if self.connection is not None:
            self.connection.close()
        if self._task is not None:
            await self._task

    async def start(self, session_id: str = "", **options: Any) -> ClientSession:
        """Open a session; the options are those of `start` in the protocol. Raises ServerError, ConnectionLost.

        Where the server says that it has no room now, it is asked again for as long as there is patience.
        """
        if self._failure is not None:
            raise self._failure
        # An id of our own: when the connection is lost before the answer, it says whether there is a session.
        session = ClientSession(self, session_id or str(uuid.uuid4()), options)
        if session.id in self._sessions or len(session.id) > 128:
            raise ValueError(f"session_id {session.id!r} is in use, or longer than 128 characters")
        self._sessions[session.id] = session
        try:
            session.connected(self.connection)
            await session.opened
        except BaseException:
            self.forget(session)
            raise
        return session

    def forget(self, session: ClientSession) -> None:
        """The session is over."""
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
        session.disconnected()

    # -- the connection ------------------------------------------------------------------------------------------

    async def _run(self, connection: Connection | None) -> None:
        failure: Exception = ConnectionLost("the connection was closed")
        try:
            while connection is not None:
                await self._read(connection)
                code, reason = connection.close_code, connection.close_reason
                if code in REFUSED and not self._closing.is_set():
                    raise ConnectionLost(f"the server closed the connection: {code} {reason or ''}".strip())
                connection = await self._again(code)
        except (OSError, HTTPClientError, ConnectionLost) as exc:
            failure = exc
        except Exception as exc:
            failure = exc
            raise
        finally:
            self._failure = failure
            for session in list(self._sessions.values()):
                session.fail(failure)

    async def _read(self, connection: Connection) -> None:
        self.connection = connection
        if self._closing.is_set():  # while it was dialled
            connection.close()
        for session in list(self._sessions.values()):
            session.connected(connection)
        try:
            await connection.ended
        except Exception:
            connection.close()
            raise
        self.connection = None
        if not self._closing.is_set():
            self._watch.lost(connection.close_code)
        connection.close()  # however it ended: Tornado warns of one that was only lost
        for session in self._sessions.values():
            session.disconnected()

    def _take(self, message: str | bytes) -> None:
        event = orjson.loads(message)
        self._watch.received(event)
        if "session_id" in event:
            session = self._sessions.get(event["session_id"])
            if session is not None:
                session.take(event)
            return
        for session in list(self._sessions.values()):
            if not session.opening:  # of no session: a message so large that it was not read, say
                session.take(event)

    async def _again(self, code: int | None, least: float = 0.0) -> Connection | None:
        """A new connection, after `least` seconds or more; None if there should be none."""
        deadline = time.monotonic() + self.patience
        longest = FIRST_PAUSE * (8 if code == 1013 else 1)  # "try again later"
        while True:
            pause = least + random.uniform(0, longest)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(pause, max(0.0, deadline - time.monotonic())))
            if self._closing.is_set():
                return None
            try:
                return await self._dial()
            except (OSError, HTTPClientError) as exc:
                if _for_good(exc):
                    raise
                if time.monotonic() > deadline:
                    raise ConnectionLost(f"no connection for {self.patience:.0f} s: {exc}") from exc
                least = self._refused(exc)
            longest = min(longest * 2, LAST_PAUSE)

    async def _dial(self) -> Connection:
        url = self._urls[self._turn % len(self._urls)]
        self._turn += 1  # whatever becomes of it, the next try is at the next one
        request = HTTPRequest(url, headers=authorization(self._key), connect_timeout=self._timeout)
        began = time.monotonic()
        made = Connection(request, self._take)
        await made.connect_future
        self._watch.connected(time.monotonic() - began)
        return made

    def _refused(self, reason: OSError | HTTPClientError) -> float:
        """Seconds to wait at least before the next try."""
        pause = _retry_after(reason) if isinstance(reason, HTTPClientError) else 0.0
        self._watch.refused(reason, pause)
        return pause


def _for_good(error: OSError | HTTPClientError) -> bool:
    """Whether trying again is no use."""
    return isinstance(error, HTTPClientError) and 400 <= error.code < 500 and error.code not in NOT_YET


def _retry_after(error: HTTPClientError) -> float:
    """Seconds for which the server asked, 0 if it did not."""
    value = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    return float(value) if value.isdecimal() else 0.0


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
        self._wire: Wire | None = None  # where the pump has nothing to do, and `send` may write
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

    def connected(self, connection: Connection | None) -> None:
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

    def _reopen(self, connection: Connection, pause: float = 0.0) -> None:
        self.opening = True  # from now on, and not from the task's first step on: it is another connection
        self._do(self._open, connection, pause)

    async def _open(self, connection: Connection, pause: float) -> None:
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

    async def _pump(self, connection: Connection, index: int) -> None:
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
            pause = event.get("retry_after", 0.0) + random.uniform(0, FIRST_PAUSE)
            self._reopen(self._client.connection, pause)
