"""A WebSocket connection that speaks the native protocol (protocol/native.py), and the sessions on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream
from tornado.web import HTTPError
from tornado.websocket import WebSocketHandler, WebSocketProtocol

from asrserver.errors import AsrError, BadRequest, Refused, Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.room import MAX_WAIT
from asrserver.gateway.session import Session
from asrserver.handlers.base import JsonErrors
from asrserver.handlers.flow_control import Brake, DrainingWire
from asrserver.handlers.keepalive import Bygone, Connections
from asrserver.handlers.multiplex import Carried
from asrserver.protocol import native
from asrserver.protocol.events import Final, Lost, Refusal, SessionEvent, Started
from asrserver.protocol.frames import TEXT, Params, StreamBufferFullError, StreamClosedError
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.websocket")

#: Bytes that wait for a client that does not read; then the connection is cut. As many wait in the kernel, which would
#: let it be megabytes.
MAX_UNREAD = 1 << 18

#: Bytes of a replay that are written before the next wait until those are read.
REPLAYED = 1 << 16

#: Bytes of messages that wait for one before them, a `start` say, while the connection is still read: pings and pongs
#: come in the same stream, and unanswered they would end it.
MAX_LATER = 1 << 18

#: What browsers name beside `bearer.<key>`: who offers subprotocols wants one of them back, and not the key.
SUBPROTOCOL = "asr.v1"

#: In place of the headers of a response that is long sent.
NO_HEADERS = HTTPHeaders()

INTERNAL = Refusal(code="internal_error", message="the message could not be handled")


def _where(session: Session, index: Any) -> dict[str, Any]:
    """Which chunk was refused, as far as it is known."""
    return {"session_id": session.id} | ({"chunk_index": index} if isinstance(index, int) else {})


class WebSocket(JsonErrors, WebSocketHandler):
    """One connection and the sessions started on it."""

    connections: Connections
    ws_connection: DrainingWire | None

    def initialize(self, gateway: Gateway, connections: Connections) -> None:  # type: ignore[override]
        super().initialize(gateway)
        self.connections = connections
        self.rests = connections.rests
        self.sessions = Carried()
        self.too_large = 0
        self.messages = 0
        self._brake = Brake()
        self._busy: asyncio.Task[None] | None = None  # with a message that takes time
        # Messages that wait for it; not always there, for an empty one is 760 bytes.
        self._later: deque[tuple[str | bytes, int]] | None = None
        self._later_bytes = 0
        self._heard = 0.0  # when the last message came, by the loop's clock
        self._ping_at = 0.0  # when to ping next
        self.due = 0.0  # when to look next whether to ping, or to close
        self._leave: Callable[[], None] | None = None  # gives the place among the connections back
        self._written = 0  # bytes since they were last waited for

    async def get(self, *args: str, **kwargs: str) -> None:
        """Let the connection in, or not; what it says is read by a task of its own."""
        if self.request.headers.get("Upgrade", "").lower() != "websocket":
            raise HTTPError(400, "this path speaks WebSocket: ask for an upgrade")
        try:
            self._leave = await self.gateway.connect(self.request.remote_ip or "", self.key)
        except (Refused, Unavailable) as exc:
            self.refuse(exc)
            return
        try:
            await super().get(*args, **kwargs)
        finally:
            if self not in self.connections:
                self._left()

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        return DrainingWire(self, False, Params(max_message_size=self.gateway.settings.max_message))

    def check_origin(self, origin: str) -> bool:
        return True  # the door has asked

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        return SUBPROTOCOL if SUBPROTOCOL in subprotocols else None

    def open(self, *_args: str, **_kwargs: str) -> None:
        self.set_nodelay(True)
        stream = self._wire.stream  # Tornado's own, still
        stream.max_write_buffer_size = MAX_UNREAD
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_UNREAD // 2)  # of which Linux makes twice
        self.gateway.connections += 1
        metrics.connections_opened.inc()
        now = self._heard = asyncio.get_running_loop().time()
        # Not all at the same time, where all connect again at once.
        self._ping_at = now + self.gateway.settings.ping_interval * random.uniform(0.5, 1.0)
        self.due = min(self._ping_at, now + (self.gateway.settings.idle_timeout or math.inf))
        self.connections.add(self)
        log.info("connection open from %s key=%s", self.request.remote_ip, self.key_id or "-")
        self._slim()

    def _slim(self) -> None:
        """Let go of what the request was, its headers above all."""
        self.request = Bygone(self.request)  # type: ignore[assignment]
        self._headers = NO_HEADERS
        self.ui = None  # type: ignore[assignment]  # as Tornado does at the end

    def _detach_stream(self) -> IOStream:
        return self.detach()  # without Tornado's seven methods that say what must not be called now

    def look(self, now: float) -> float:
        """Ping, or close when no message came for long enough and nothing is owed; when to look again."""
        protocol, settings = self.ws_connection, self.gateway.settings
        if protocol is None or protocol.is_closing():
            return math.inf
        limit = settings.idle_timeout or math.inf
        if now >= self._heard + limit and not self.sessions.owed:
            self._told(Refused(408, "idle_timeout", f"no message came for {limit:g} s"))
            self.close(1008, "idle")
            return math.inf
        if now >= self._ping_at:
            self._ping_at = now + settings.ping_interval
            try:
                protocol.ask()
            except StreamBufferFullError:
                self._cut()
        return min(self._ping_at, max(self._heard + limit, now + limit / 4))

    @property
    def resumable(self) -> bool:
        """Whether closing the connection costs its client nothing: it has no session that it cannot resume."""
        return self.sessions.resumable

    @property
    def waits_for_an_answer(self) -> bool:
        """Whether nothing of its last session was on its way: its client may wait for each chunk's acknowledgement."""
        current = self.sessions.current
        return current is None or not current.in_flight

    @property
    def _wire(self) -> DrainingWire:
        assert self.ws_connection is not None
        return self.ws_connection

    def on_close(self) -> None:
        if self not in self.connections:
            return  # it was never open
        self.connections.discard(self)
        self.gateway.connections -= 1
        self._left()
        log.info(
            "connection closed from %s code=%s messages=%d waiting=%d",
            self.request.remote_ip,
            self.close_code,
            self.messages,
            sum(session.state == "recording" for session in self.sessions.values()),
        )
        for session in self.sessions.values():
            self.gateway.sessions.abandon(session)

    def _left(self) -> None:
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()

    def on_binaries(self, messages: list[bytes]) -> Awaitable[Any] | None:
        """Take binary messages that were read together, as one by one."""
        if len(messages) > 1 and self._busy is None:
            try:
                session = self._take_run(messages)
            except Exception:
                log.exception("messages could not be handled")
                self._tell(INTERNAL)
                return None
            if session is not None:
                self.messages += len(messages)
                self._heard = time.monotonic()
                room = self.gateway.room.for_audio(session)
                if room is None:
                    return self._pause()
                self._busy = asyncio.ensure_future(self._in_order(room))
                return None
        waits = [wait for message in messages if (wait := self.on_message(message)) is not None]
        return asyncio.gather(*waits) if waits else None

    def on_message(self, message: str | bytes) -> Awaitable[Any] | None:
        """Take one message, or keep it until those before it are done; what it returns stops the reading."""
        self.messages += 1
        self._heard = time.monotonic()
        size, self.too_large = self.too_large, 0
        if len(message) > self.gateway.settings.max_message:
            size = len(message)  # by a last fragment so small that it was read
        if self._busy is None:
            waits = self._take(message, size)
            if waits is None:
                return self._pause()
            self._busy = asyncio.ensure_future(self._in_order(waits))
            return None
        if self._later is None:
            self._later = deque()
        self._later.append((message, size))
        self._later_bytes += len(message)
        if self._later_bytes <= MAX_LATER:
            return None
        # Not until all of them are done: pongs would wait as long. One is done in the time that one more is read.
        return asyncio.wait([self._busy], timeout=MAX_WAIT)

    def _pause(self) -> Awaitable[None] | None:
        """None, or what to wait for before the next message is taken."""
        wire = self.ws_connection
        if wire is not None and wire.blocked:
            return self._until_read()  # what is more than the kernel takes: who does not read is not read
        return self._brake.pause()

    async def _in_order(self, waits: Awaitable[Any] | None) -> None:
        while waits is not None:
            try:
                await waits
            except Exception:
                log.exception("a message could not be handled")
                self._tell(INTERNAL)
            waits = None
            while waits is None:
                pause = self._pause()
                if pause is not None:
                    await pause
                if not self._later or self.ws_connection is None:
                    break
                message, size = self._later.popleft()
                self._later_bytes -= len(message)
                waits = self._take(message, size)
        self._busy = self._later = None

    def _take(self, message: str | bytes, size: int) -> Awaitable[Any] | None:
        try:
            if size:
                limit = self.gateway.settings.max_message
                raise BadRequest("message_too_large", f"a message of {size} bytes is over the limit of {limit}")
            if isinstance(message, bytes):
                return self._binary(message)
            return self._text(message)
        except AsrError as exc:
            self._refuse(exc)
        except Exception:
            # Tornado would cut the connection without a word.
            log.exception("a message could not be handled")
            self._tell(INTERNAL)
        return None

    def _refuse(self, error: AsrError) -> None:
        session = self.sessions.unread(error)
        if session is not None:
            session.refuse(error.details.get("chunk_index"))
        self._told(error)

    def _told(self, error: AsrError, **where: Any) -> None:
        """Tell the client that something is refused, and where that is, as far as the error itself does not say."""
        self.gateway.refused(error, self.request.remote_ip, self.key_id)
        self._brake.refused()
        self._tell(Refusal.of(error, **where))

    # -- messages ------------------------------------------------------------------------------------------------

    def _binary(self, data: bytes) -> Awaitable[Any] | None:
        return self._audio(*self.sessions.framed(data))

    def _take_run(self, messages: list[bytes]) -> Session | None:
        """Take messages as the next chunks of one session, if they are that, for less than one by one; whose."""
        run = self.sessions.run(messages)
        return run[0] if run is not None and self.gateway.sessions.append_run(*run) else None

    def _text(self, text: str) -> Awaitable[Any] | None:
        action = native.parse(text)
        match action:
            case native.ChunkAction():
                return self._chunk(action)
            case native.StartAction():
                return self._start(action)
            case native.ResumeAction():
                return self._resume(action)
            case native.FinishAction():
                self.gateway.sessions.finish(self.sessions.meant(action.session_id))
                return None

    async def _start(self, action: native.StartAction) -> None:
        start = action.start
        try:
            session = await self.gateway.start(start, self.on_event, self.key_id, len(self.sessions))
        except AsrError as exc:
            self._told(exc, **native.named(start.session_id))
            return
        self.sessions.carry(session, action.link)
        queued = None
        if action.queue_position:
            with contextlib.suppress(Unavailable):
                queued = await self.gateway.place()
        self._tell(Started(session_id=session.id, queued=queued), action.link.channel)
        if self.ws_connection is None:  # the client left while its session was made
            self.gateway.sessions.abandon(session)

    async def _resume(self, action: native.ResumeAction) -> None:
        try:
            session, missed = await self.gateway.resume(action.resume, self.on_event, self.key_id)
        except AsrError as exc:
            self._told(exc, session_id=action.resume.session_id)
            return
        self.sessions.carry(session, action.link)
        self._tell(session.resumption(), action.link.channel)
        await self.gateway.sessions.replay(session, missed, self._read)
        if self.ws_connection is None:
            self.gateway.sessions.abandon(session)

    async def _read(self) -> None:
        """Wait until the client has read what it was sent, if that is much."""
        if self._written >= REPLAYED:
            self._written = 0
            await self._until_read()

    async def _until_read(self) -> None:
        """Wait until the client has read what it was sent; one that does not for too long is cut."""
        if self.ws_connection is None or not self._wire.blocked:
            return
        try:
            async with asyncio.timeout(self.gateway.settings.unread_timeout):
                await self._wire.drained()
        except TimeoutError:
            self._cut()

    def _chunk(self, action: native.ChunkAction) -> Awaitable[Any] | None:
        session, index = self.sessions.meant(action.session_id, action.chunk_index), action.chunk_index
        try:
            data = action.audio()
        except BadRequest as exc:
            exc.details |= _where(session, index)
            raise
        return self._audio(session, index, data)

    def _audio(self, session: Session, index: Any, data: bytes) -> Awaitable[Any] | None:
        if not data:
            raise BadRequest("empty_chunk", "the chunk has no audio", **_where(session, index))
        index, fresh = session.accept(index)
        self.gateway.sessions.append(session, index, data, fresh)
        return self.gateway.room.for_audio(session)

    # -- events --------------------------------------------------------------------------------------------------

    def on_event(self, event: SessionEvent) -> None:
        """Send a session's event."""
        self._tell(event)
        if isinstance(event, Final):
            self.sessions.forget(event.session_id, "session_finished", "the session is over")
        elif isinstance(event, Lost) and event.session_id is not None:
            code, message = event.code, event.message
            if event.resumable:
                code, message = "session_detached", "the session is no longer on this connection: resume it"
            self.sessions.forget(event.session_id, code, message)

    def _tell(self, event: SessionEvent, channel: int | None = None) -> None:
        """Queue an event's message; a client that does not read costs MAX_UNREAD bytes and then its connection."""
        data = native.format(event, channel)
        if data is None or self.ws_connection is None or self.ws_connection.is_closing():
            return
        self._written += len(data)
        try:
            self._wire.send(TEXT, data)
        except StreamClosedError:
            return
        except StreamBufferFullError:
            self._cut()

    def _cut(self) -> None:
        if self.ws_connection is not None:
            log.warning("connection from %s does not read: cut", self.request.remote_ip)
            self._wire.stream.close()
