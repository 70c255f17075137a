"""One session of the client: it sends chunks and receives events, over one connection or several."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from base64 import b64encode
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Protocol

import orjson
from tornado.websocket import WebSocketClosedError

from asrserver.client.connection import ClientConnection
from asrserver.client.errors import Event, ServerError
from asrserver.protocol.frames import BINARY, TEXT, FrameProtocol, StreamClosedError
from asrserver.protocol.native import HEADER

log = logging.getLogger("asrserver.client")

#: Chunks of a session, and bytes of them, that may wait for their acknowledgement; then `send` waits.
WINDOW = 32
WINDOW_BYTES = 32 * 2**20

#: Seconds for which the server may combine acknowledgements, if the window is large enough for that.
ACK_INTERVAL = 0.5

#: Errors of a session that are kept beside its events, the first ones.
MAX_ERRORS = 100

#: Longest random pause in seconds before a refused start or resume is repeated, added to what the server asks for.
RETRY_JITTER = 0.5

#: Codes of errors after which the session does not exist (any more) for this client.
SESSION_LOST_CODES = frozenset({"session_moved", "session_gone", "no_session"})


class SessionClient(Protocol):
    """What a session needs of its client.

    Attributes:
        connection: The connection; None while it is lost.
        channels: The channels of binary frames that no session has had yet.
        window: Chunks of a session that may wait for their acknowledgement.
        reconnect_timeout: Seconds for which a refused start or resume is repeated.
    """

    connection: ClientConnection | None
    channels: Iterator[int]
    window: int
    reconnect_timeout: float

    @property
    def session_count(self) -> int:
        """Open sessions of the client."""
        ...

    def forget(self, session: ClientSession) -> None:
        """Remove a session that is over."""
        ...


class ClientSession:
    """One session. Its events wait until they are read; of consecutive partial results only the newest is kept, of each
    channel where channels are recognised separately.

    Attributes:
        id: The session's id.
        model: The model that recognises the session, if the server knows that at its start.
        next_index: The index of the next chunk.
        errors: Of chunks and flushes that failed while the session went on, at most MAX_ERRORS. Who reads no events
            would take a recording that cannot be decoded for one in which nobody speaks.
        opened: Done when the server has accepted the session; carries the exception if it does not.
        opening: A start or resume on the current connection has not been answered yet.
    """

    def __init__(self, client: SessionClient, sid: str, options: dict[str, Any]) -> None:
        self.id = sid
        self.model: str | None = None
        self.next_index = 0
        self.errors: list[ServerError] = []
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.opening = True
        self._unanswered = False  # the connection was lost before a resume was answered: it may be carried out yet
        self._client = client
        self._options = options
        self._channel = next(client.channels)
        # With a small window every acknowledgement is needed at once.
        self._ack_interval: float = options.get("ack_interval", ACK_INTERVAL if client.window >= WINDOW else 0.0)
        self._binary = False  # the server takes this session's chunks as binary frames
        self._last_seq = 0
        self._unacknowledged: dict[int, bytes] = {}
        self._unacknowledged_bytes = 0
        self._refused_indexes: set[int] = set()  # sent again without data after a resume; their errors are not news
        self._flushes = deque[int]()  # of each without an answer: the index of the chunk that it came before
        self._flushes_answered = 0
        self._flushes_written = 0  # on this connection or an earlier one, as far as the server got them
        self._ended = False
        self._failure: Exception | None = None
        self._events: deque[Event] = deque()
        self._event_arrived = asyncio.Event()  # events() waits for it
        self._window_opened = asyncio.Event()  # send() waits for it
        self._chunk_added = asyncio.Event()  # _pump() waits for it
        self._next_to_write = 0  # index of the next chunk to be written on this connection
        self._idle_frames: FrameProtocol | None = None  # set while _pump has nothing to write: then send() may write
        self._work: asyncio.Task[None] | None = None  # opens the session, or writes its chunks
        self._start_attempts = 0
        self._retrying_since: float | None = None

    async def send(self, data: bytes) -> int:
        """Send the next chunk, once the window has room for it.

        Args:
            data: The audio: a whole file, or in mode `stream` any piece of it.

        Returns:
            The index of the chunk.

        Raises:
            ServerError: The server ended the session.
            ConnectionLost: There is no connection any more.
        """
        while (index := self.send_nowait(data)) is None:
            self._window_opened.clear()
            await self._window_opened.wait()
        return index

    def send_nowait(self, data: bytes) -> int | None:
        """Send the next chunk if the window has room for it; raises what `send` raises.

        Returns:
            The index of the chunk; None if there is no room: then it was not sent.
        """
        if self._failure is not None:
            raise self._failure
        waiting = len(self._unacknowledged)
        if waiting and (waiting >= self._client.window or self._unacknowledged_bytes >= WINDOW_BYTES):
            return None
        index, self.next_index = self.next_index, self.next_index + 1
        self._unacknowledged[index] = data
        self._unacknowledged_bytes += len(data)
        frames = self._idle_frames
        if frames is not None and self._binary and self._next_to_write == index and not frames.blocked:
            self._next_to_write += 1
            try:  # noqa: SIM105  # suppress is three calls a chunk
                frames.send(BINARY, HEADER.pack(self._channel, index) + data)
            except StreamClosedError:
                pass  # the client notices the closed stream, and connects again
        else:
            self._chunk_added.set()
        return index

    async def flush(self) -> None:
        """Have what was sent so far recognised now; a `flushed` event is the answer, after the results."""
        self._flushes.append(self.next_index)
        self._idle_frames = None  # what is sent from now on must not overtake it
        self._chunk_added.set()

    async def end(self) -> None:
        """Tell the server that no more audio follows; `final_result` is the answer."""
        self._ended = True
        self._chunk_added.set()

    async def events(self) -> AsyncIterator[Event]:
        """Yield every event up to and including `final_result`.

        The final result's `status` is `interrupted` if the client was away for too long: audio may be missing.

        Raises:
            ServerError: The server ended the session.
            ConnectionLost: There is no connection any more.
        """
        while True:
            while not self._events:
                if self._failure is not None:
                    raise self._failure
                self._event_arrived.clear()
                await self._event_arrived.wait()
            event = self._events.popleft()
            yield event
            if event["type"] == "final_result":
                return

    async def finish(self) -> Event:
        """End the session and wait for its `final_result`, which is returned; raises what `events` raises.

        See `errors` for what could not be recognised.
        """
        await self.end()
        async for event in self.events():
            last = event
        return last

    # -- called by the client --------------------------------------------------------------------------------------

    def connected(self, connection: ClientConnection | None) -> None:
        """Open the session on a new connection."""
        self._unanswered = self._unanswered or (self.opened.done() and self.opening)
        if connection is not None:
            self._reopen(connection)

    def disconnected(self) -> None:
        """Stop writing: the connection is lost, or the session is over."""
        self._idle_frames = None
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def fail(self, error: Exception) -> None:
        """End the session with an error, which everyone who waits for it receives."""
        self._failure = error
        if not self.opened.done():
            self.opened.set_exception(error)
        for waiting in (self._event_arrived, self._window_opened, self._chunk_added):
            waiting.set()
        self._client.forget(self)

    def receive(self, event: Event) -> None:
        """Process a message of this session, or of none."""
        kind, index = event["type"], event.get("chunk_index")
        status = event.get("status")
        if kind == "ack" and status in ("session_started", "session_resumed"):
            for warning in event.get("warnings", ()):
                log.warning("session=%s %s", self.id, warning)
            self.model = event.get("model", self.model)
            self._binary = event.get("channel") == self._channel  # older servers know no channels
            self._flushes_written = event.get("flushes", 0)
            self._established(event.get("next_chunk_index", 0), event.get("state", "recording") == "recording")
        elif kind == "ack":  # in order: of a chunk before it that is not acknowledged, an error did not say the index
            self._acknowledged_below(event["chunk_index"] + 1)
        elif kind == "error" and "seq" not in event:
            self._receive_error(event)
        elif event.get("seq", self._last_seq + 1) > self._last_seq:
            self._last_seq = event.get("seq", self._last_seq)
            self._acknowledged(index)
            if kind == "flushed" and self._flushes:
                self._flushes.popleft()
                self._flushes_answered = event["number"]
            self._add_event(event)
            if kind == "final_result":
                self._failure = ServerError({"code": "session_finished", "message": "the session is finished"})
                self._window_opened.set()
                self._client.forget(self)

    # -- the connection ----------------------------------------------------------------------------------------------

    def _replace_work(self, work: Callable[..., Coroutine[Any, Any, None]], *arguments: Any) -> None:
        """Cancel what is being written, and write something else."""

        async def run() -> None:
            try:
                await work(*arguments)
            except (WebSocketClosedError, StreamClosedError):
                pass  # the client notices, and connects again
            except Exception as exc:  # nobody awaits the task: the caller would wait for ever
                self.fail(exc)

        self.disconnected()
        self._work = asyncio.create_task(run(), name=f"asrserver-client-{self.id}")

    def _reopen(self, connection: ClientConnection, pause: float = 0.0) -> None:
        self.opening = True  # now, and not with the task's first step: nothing was answered on this connection
        self._replace_work(self._open, connection, pause)

    async def _open(self, connection: ClientConnection, pause: float) -> None:
        await asyncio.sleep(pause)
        link = {"session_id": self.id, "channel": self._channel, "ack_interval": self._ack_interval}
        if self.opened.done():
            message = {"action": "resume", "last_seq": self._last_seq, **link}
        else:
            self._start_attempts += 1
            message = {"action": "start", **self._options, "resume": True, **link}
        await connection.write(message)

    def _established(self, next_index: int, takes_audio: bool) -> None:
        """The server accepted the session on this connection, and expects chunk `next_index`; or it has its end."""
        self.opening, self._retrying_since = False, None
        if not self.opened.done():
            self.opened.set_result(None)
        self._acknowledged_below(next_index)
        if takes_audio and self._client.connection is not None:
            self._replace_work(self._pump, self._client.connection, next_index)

    async def _pump(self, connection: ClientConnection, index: int) -> None:
        """Write the chunks from `index` on, and the end. While there is nothing to write, `send` writes by itself."""
        frames, self._next_to_write = connection.frames, index
        while True:
            while self._next_to_write < self.next_index or self._is_flush_due:
                if self._is_flush_due:
                    self._flushes_written += 1
                    await connection.write({"action": "flush", "session_id": self.id})
                    continue
                index, self._next_to_write = self._next_to_write, self._next_to_write + 1
                data = self._unacknowledged.get(index)
                if data is None:  # refused before the connection was lost: the server must refuse it again
                    self._refused_indexes.add(index)
                if self._binary:
                    frames.send(BINARY, HEADER.pack(self._channel, index) + (data or b""))
                else:
                    frames.send(TEXT, orjson.dumps(self._chunk(index, data or b"")))
                await frames.drained()
            if self._ended:
                await connection.write({"action": "finish", "session_id": self.id})
                return
            self._idle_frames = frames
            self._chunk_added.clear()
            await self._chunk_added.wait()
            self._idle_frames = None

    @property
    def _is_flush_due(self) -> bool:
        waiting = self._flushes_written - self._flushes_answered  # written, and not answered
        return waiting < len(self._flushes) and self._flushes[waiting] <= self._next_to_write

    def _chunk(self, index: int, data: bytes) -> dict[str, Any]:
        audio = b64encode(data).decode()
        return {"action": "chunk", "session_id": self.id, "chunk_index": index, "audio_data": audio}

    def _acknowledged_below(self, end: int) -> None:
        for index in [index for index in self._unacknowledged if index < end]:
            self._acknowledged(index)

    def _acknowledged(self, index: int | None) -> None:
        """Forget a chunk that the server accepted, or refused for good."""
        data = self._unacknowledged.pop(index, None) if index is not None else None
        if data is not None:
            self._unacknowledged_bytes -= len(data)
            self._window_opened.set()

    def _add_event(self, event: Event) -> None:
        if event["type"] == "partial_result":
            self._drop_partial(event.get("channel"))
        elif event["type"] == "error" and len(self.errors) < MAX_ERRORS:
            self.errors.append(ServerError(event))
        self._events.append(event)
        self._event_arrived.set()

    def _drop_partial(self, channel: int | None) -> None:
        """Drop the partial result of a channel that no other result follows: the next one replaces it."""
        for place in range(len(self._events) - 1, -1, -1):
            event = self._events[place]
            if event["type"] != "partial_result":
                return
            if event.get("channel") == channel:
                del self._events[place]
                return

    def _receive_error(self, event: Event) -> None:
        """Process an error that is no result: of a start, a resume, a chunk, or the whole session."""
        code, index = event["code"], event.get("chunk_index")
        if code == "session_detached":
            return  # the answer to messages that were on their way when another error asked to resume
        opening = self.opening and index is None
        if event.get("resumable") or (opening and "retry_after" in event):
            self._retry(event)
        elif opening and code == "session_exists" and self._start_attempts > 1:
            # An earlier start arrived, but its answer did not.
            self.opened.set_result(None)
            self.connected(self._client.connection)
        elif code == "session_moved" and self._unanswered and not opening and self._client.connection is not None:
            # To our own earlier connection: its resume waited at another gateway, and came after this one's.
            self._unanswered = False
            self._reopen(self._client.connection)
        elif opening or code in SESSION_LOST_CODES:
            self.fail(ServerError(event))
        elif index in self._refused_indexes:
            self._refused_indexes.discard(index)
        else:
            if index is None and self._unacknowledged and code in ("message_too_large", "overloaded"):
                # Refused unread: the error cannot say which chunk it was. Only the largest can have been too large;
                # for want of room it may have been any, also of another session.
                sure = code == "message_too_large" or len(self._unacknowledged) == self._client.session_count == 1
                index = max(self._unacknowledged, key=lambda at: len(self._unacknowledged[at])) if sure else None
            self._acknowledged(index)
            self._add_event(event)

    def _retry(self, event: Event) -> None:
        """Start or resume again after the pause that the error asks for; give up after `reconnect_timeout`."""
        now = time.monotonic()
        self._retrying_since = self._retrying_since or now
        if now - self._retrying_since > self._client.reconnect_timeout:
            self.fail(ServerError(event))
        elif self._client.connection is not None:
            pause = event.get("retry_after", 0.0) + random.uniform(0, RETRY_JITTER)
            self._reopen(self._client.connection, pause)
