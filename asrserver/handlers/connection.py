"""A WebSocket connection, whatever protocol its messages are in.

It counts as one of the gateway's connections, is pinged, is closed when idle, and is cut when its client does not read.
Its messages are handled one at a time, in order. While one takes time (a `start`, for example), later ones wait in a
queue, and the connection is still read: pings and pongs come in the same stream, and without them it would be closed.

A protocol is a subclass: it takes messages, and tells its client of events. websocket.py is one, live_session.py is
the base of others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
import socket
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream
from tornado.web import HTTPError
from tornado.websocket import WebSocketHandler, WebSocketProtocol

from asrserver.errors import AsrError, BadRequest, Refused, Unavailable
from asrserver.gateway.gateway import Gateway
from asrserver.gateway.intake import Accepted
from asrserver.gateway.room import MAX_WAIT
from asrserver.handlers.base import JsonHandler
from asrserver.handlers.flow_control import RefusalThrottle, ServerFrameProtocol
from asrserver.handlers.keepalive import ConnectionRegistry, RequestSnapshot
from asrserver.handlers.multiplex import GARBLED, ConnectionSessions
from asrserver.protocol.events import Final, Lost, Refusal, SessionEvent
from asrserver.protocol.frames import TEXT, Params, StreamBufferFullError, StreamClosedError
from asrserver.telemetry import metrics

log = logging.getLogger("asrserver.websocket")

#: Bytes that wait here for a client that does not read; beyond that it is cut. The same number waits in the kernel,
#: whose default is megabytes.
MAX_UNREAD = 1 << 18

#: Bytes that wait in the kernel to be read. Its default limit is often 32 MiB: while a client is held back, its ping
#: would wait behind all that, for longer than its library waits for the pong (20 s).
MAX_UNHANDLED = 1 << 18

#: Bytes that are sent before `confirm_read` waits until the client has read them.
CONFIRM_BYTES = 1 << 16

#: Bytes of messages that wait in the queue before the connection is no longer read.
MAX_QUEUED_BYTES = 1 << 18

#: Stands for the headers of a response that was sent long ago.
NO_HEADERS = HTTPHeaders()

INTERNAL_ERROR = Refusal(code="internal_error", message="the message could not be handled")


class MessageQueue:
    """Messages that wait for one that takes time. They are handled one after another; the queue ends when it is empty.

    They are handled even if the client has disconnected meanwhile: it may have sent a whole session and left. They are
    not if the server has closed the connection.

    Most connections have no queue, because no message of theirs takes time: an empty one would cost a kilobyte.

    Args:
        connection: Takes the messages.
        wait: The end of the message that takes time.

    Attributes:
        size: Bytes of the messages that wait.
        task: Ends with the queue.
    """

    __slots__ = ("_connection", "_messages", "size", "task")

    def __init__(self, connection: WebSocketConnection, wait: Awaitable[Any]) -> None:
        self._connection = connection
        self._messages: deque[tuple[str | bytes, int]] = deque()
        self.size = 0
        self.task = asyncio.create_task(self._run(wait), name="websocket messages")

    def add(self, message: str | bytes, too_large: int) -> None:
        """Add a message; the arguments are those of WebSocketConnection.take.

        Of a message for which there is no room only the size is kept, and it is refused in its turn.
        """
        size = len(message)
        if self._connection.held.grew(self._connection.key_id, 0, size):
            self._connection.held.add(self._connection.key_id, -size)
            message, too_large, size = message[:0], max(too_large, size), 0
        self._messages.append((message, too_large))
        self.size += size

    def _shrink(self, size: int) -> None:
        """Count bytes that no longer wait."""
        self.size -= size
        self._connection.held.add(self._connection.key_id, -size)

    async def _run(self, wait: Awaitable[Any]) -> None:
        try:
            await self._take_all(wait)
        finally:
            self._connection.queue = None
            self._shrink(self.size)
            if self._connection.ws_connection is None and not self._connection.resumes:
                self._connection.leave()

    async def _take_all(self, wait: Awaitable[Any] | None) -> None:
        connection, frames = self._connection, self._connection.ws_connection
        while wait is not None:
            try:
                await wait
            except Exception:
                connection.message_failed()
            wait = None
            while wait is None:
                pause = connection.pause()
                if pause is not None:
                    await pause
                if not self._messages or frames is None or frames.dismissed:
                    break
                message, too_large = self._messages.popleft()
                self._shrink(len(message))
                wait = connection.take(message, too_large)


class WebSocketConnection(JsonHandler, WebSocketHandler):
    """One connection and the sessions on it.

    Attributes:
        sessions: The sessions.
        coalescer, held, messages, discarded: As FrameReader has them.
        queue: The messages that wait; None while no message takes time.
        due: When to check it next, by the event loop's clock.
        heard_at: When the last message came, by the same clock.
    """

    takes_secrets = True

    #: Whether clients can resume their sessions on another connection.
    resumes = True

    ws_connection: ServerFrameProtocol | None

    def initialize(self, gateway: Gateway, registry: ConnectionRegistry) -> None:  # type: ignore[override]
        super().initialize(gateway)
        self.sessions = ConnectionSessions()
        self.coalescer = registry.coalescer
        self.held = gateway.held
        self.messages = 0
        self.discarded = 0
        self.queue: MessageQueue | None = None
        self.due = 0.0
        self._registry = registry
        self._throttle = RefusalThrottle()
        self.heard_at = 0.0
        self._ping_at = 0.0  # when to ping next
        self._release: Callable[[], None] | None = None  # gives the place among the gateway's connections back
        self._unconfirmed = 0  # bytes sent since `confirm_read` last waited

    # -- what a protocol does ------------------------------------------------------------------------------------

    @abstractmethod
    def take_text(self, text: str) -> Awaitable[Any] | None:
        """Take a text message.

        Returns:
            What to wait for before the next message is taken, or None.

        Raises:
            AsrError: The message is refused.
        """

    @abstractmethod
    def take_binary(self, data: bytes) -> Awaitable[Any] | None:
        """Take a binary message, as `take_text` does."""

    @abstractmethod
    def take_run(self, messages: list[bytes]) -> Accepted | None:
        """Take binary messages that came together, as the next audio of one session; None: take them one by one."""

    @abstractmethod
    def tell(self, event: SessionEvent) -> None:
        """Send what the client is told of an event, if it is told anything."""

    async def admit(self) -> None:
        """Do what must succeed before the upgrade: what fails later can only be told by closing the connection.

        Raises:
            AsrError: The connection is refused.
        """

    # -- its beginning and end -----------------------------------------------------------------------------------

    async def get(self, *args: str, **kwargs: str) -> None:
        """Admit the connection, or refuse it; a task of its own then reads it.

        A page does not see why its WebSocket was refused, but can repeat it as an ordinary request, which gets the
        same refusal.
        """
        try:
            self._release = await self.gateway.connect(self.request.remote_ip or "", self.key)
            if self.request.headers.get("Upgrade", "").lower() != "websocket":
                raise HTTPError(400, "this path speaks WebSocket: ask for an upgrade")
            await self.admit()
            await super().get(*args, **kwargs)
        except (Refused, Unavailable) as exc:
            self.refuse_request(exc)
        finally:
            if self not in self._registry:
                self._end()

    def get_websocket_protocol(self) -> WebSocketProtocol | None:
        if self.request.headers.get("Sec-WebSocket-Version") != "13":
            return None
        return ServerFrameProtocol(self, False, Params(max_message_size=self.gateway.settings.max_message))

    def check_origin(self, origin: str) -> bool:
        return True  # AuthenticatedHandler has checked it

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Register the connection; Tornado calls this after the upgrade."""
        stream = self._frames.stream  # still Tornado's
        if stream.closed():
            return  # the client gave up during the handshake; reading will end at once
        self.set_nodelay(True)
        stream.max_write_buffer_size = MAX_UNREAD
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_UNREAD // 2)  # Linux doubles it
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MAX_UNHANDLED)
        metrics.connections_opened.inc()
        now = self.heard_at = asyncio.get_running_loop().time()
        # Spread: after a restart all clients connect at once.
        self._ping_at = now + self.gateway.settings.ping_interval * random.uniform(0.5, 1.0)
        self.due = min(self._ping_at, now + (self.gateway.settings.idle_timeout or math.inf))
        self._registry.add(self)
        log.info("connection open from %s key=%s", self.request.remote_ip, self.key_id or "-")
        # Free what the connection began as, above all the request's headers.
        self.request = RequestSnapshot(self.request)  # type: ignore[assignment]
        self._headers = NO_HEADERS
        self.ui = None  # type: ignore[assignment]  # Tornado frees it when a request ends

    def _detach_stream(self) -> IOStream:
        return self.detach()  # Tornado would also give the handler seven methods that only raise

    def on_close(self) -> None:
        """Give up the sessions; Tornado calls this when the connection is gone."""
        if self not in self._registry:
            return  # it was never open
        self._registry.discard(self)
        log.info(
            "connection closed from %s code=%s messages=%d waiting=%d",
            self.request.remote_ip,
            self.close_code,
            self.messages,
            sum(session.state == "recording" for session in self.sessions.values()),
        )
        self._end()

    def _end(self) -> None:
        """Give back what the connection holds."""
        release, self._release = self._release, None
        if release is not None:
            release()
        if self.resumes or self.queue is None:
            self.leave()

    def leave(self) -> None:
        """Leave the sessions: the client is gone, and if it cannot resume them, all that it sent is taken."""
        for session in self.sessions.values():
            (self.gateway.abandon if self.resumes else self.gateway.cancel)(session)

    # -- as ConnectionRegistry and ServerFrameProtocol see it ----------------------------------------------------

    def check(self, now: float) -> float:
        """Ping, or close the connection if no message came for too long; when to check next.

        A client with an open session may be recording for as long as it answers pings: all of it comes at the end.
        """
        frames, settings = self.ws_connection, self.gateway.settings
        if frames is None or frames.is_closing():
            return math.inf
        limit = settings.idle_timeout or math.inf
        if now >= self.heard_at + limit and not self.sessions:
            # Without an error message: clients show it to people, who have done nothing wrong.
            self.close(1000, f"no message came for {limit:g} s (idle_timeout)")
            return math.inf
        if now >= self._ping_at:
            self._ping_at = now + settings.ping_interval
            try:
                frames.ping()
            except StreamBufferFullError:
                self._cut()
        return min(self._ping_at, max(self.heard_at + limit, now + limit / 4))

    @property
    def resumable(self) -> bool:
        """Whether the client would lose nothing with the connection: it can resume all its sessions."""
        return self.sessions.resumable

    @property
    def awaits_ack(self) -> bool:
        """Whether no chunk of the current session is in flight: its client may wait for each acknowledgement."""
        current = self.sessions.current
        return current is None or not current.in_flight

    @property
    def _frames(self) -> ServerFrameProtocol:
        assert self.ws_connection is not None
        return self.ws_connection

    # -- messages ------------------------------------------------------------------------------------------------

    def on_binaries(self, messages: list[bytes]) -> Awaitable[Any] | None:
        """Handle binary messages that were read together: in one go if possible, which costs less."""
        if len(messages) > 1 and self.queue is None:
            try:
                accepted = self.take_run(messages)
            except Exception:
                self.message_failed()
                return None
            if accepted is not None:
                self.messages += len(messages)
                self.heard_at = time.monotonic()
                return self._wait(accepted.wait)
        waits = [wait for message in messages if (wait := self.on_message(message)) is not None]
        return asyncio.gather(*waits) if waits else None

    def on_message(self, message: str | bytes) -> Awaitable[Any] | None:
        """Handle a message, or queue it behind one that takes time; reading stops until what this returns is done."""
        self.messages += 1
        self.heard_at = time.monotonic()
        too_large, self.discarded = self.discarded, 0
        if len(message) > self.gateway.settings.max_message:
            too_large = len(message)  # its last fragment was so small that it was read
        if self.queue is None:
            return self._wait(self.take(message, too_large))
        self.queue.add(message, too_large)
        if self.queue.size <= MAX_QUEUED_BYTES:
            return None
        # For a time only: pongs are read with the messages. One read more takes no longer than handling a message.
        return asyncio.wait([self.queue.task], timeout=MAX_WAIT)

    def _wait(self, wait: Awaitable[Any] | None) -> Awaitable[Any] | None:
        """Queue later messages until `wait` is done; without it, return what reading stops for."""
        if wait is None:
            return self.pause()
        self.queue = MessageQueue(self, wait)
        return None

    def take(self, message: str | bytes, too_large: int) -> Awaitable[Any] | None:
        """Take one message.

        Args:
            message: The message.
            too_large: Bytes of it that were discarded, or its own if it is larger than allowed; otherwise 0.

        Returns:
            What to wait for before the next message is taken, or None.
        """
        try:
            if too_large:
                self.gateway.intake.refuse_unread(self.sessions.values(), certain=len(self.sessions) == 1)
                limit = self.gateway.settings.max_message
                if too_large <= limit:
                    raise Unavailable("overloaded", "too many large messages are coming in: send it again later", 2.0)
                what = f"message of {too_large} bytes exceeds max_message={limit}: send audio in smaller pieces"
                raise BadRequest("message_too_large", what)
            return self.take_binary(message) if isinstance(message, bytes) else self.take_text(message)
        except AsrError as exc:
            self.refuse_message(exc)
        except Exception:
            self.message_failed()  # Tornado would cut the connection without telling why
        return None

    def refuse_message(self, error: AsrError, **where: Any) -> None:
        """Tell the client that a message is refused.

        Args:
            error: Why.
            where: Details of the Refusal that the error may lack, such as `session_id`.
        """
        if error.code in GARBLED:
            self.gateway.intake.refuse_unread(self.sessions.meant_by(error), error.details.get("chunk_index"))
        self.gateway.refused(error, self.request.remote_ip, self.key_id)
        self._throttle.record_refusal()
        self.tell(Refusal.of(error, **where))

    def message_failed(self) -> None:
        """Log the exception that is being handled, and tell the client."""
        log.exception("a message could not be handled")
        self._throttle.record_refusal()
        self.tell(INTERNAL_ERROR)

    def pause(self) -> Awaitable[None] | None:
        """What to wait for before the next message is taken, or None."""
        frames = self.ws_connection
        if frames is not None and frames.blocked:
            return self._drained()  # nothing is read of a client that does not read
        return self._throttle.pause()

    # -- events --------------------------------------------------------------------------------------------------

    def on_event(self, event: SessionEvent) -> None:
        """Send a session's event."""
        self.tell(event)
        if isinstance(event, Final):
            self.sessions.detach(event.session_id, "session_finished", "the session is over")
        elif isinstance(event, Lost) and event.session_id is not None:
            code, message = event.code, event.message
            if event.resumable:
                code, message = "session_detached", "the session is no longer on this connection: resume it"
            self.sessions.detach(event.session_id, code, message)

    def send(self, data: bytes) -> None:
        """Send a text message without waiting; a client that does not read is cut after MAX_UNREAD bytes."""
        if self.ws_connection is None or self.ws_connection.is_closing():
            return
        self._unconfirmed += len(data)
        try:
            self._frames.send(TEXT, data)
        except StreamClosedError:
            return
        except StreamBufferFullError:
            self._cut()

    async def confirm_read(self) -> None:
        """Wait until the client has read what was sent, if that is much. A replay calls this after each event."""
        if self._unconfirmed >= CONFIRM_BYTES:
            self._unconfirmed = 0
            await self._drained()

    async def _drained(self) -> None:
        """Wait until the client has read what was sent; one that does not within unread_timeout is cut."""
        if self.ws_connection is None or not self._frames.blocked:
            return
        try:
            async with asyncio.timeout(self.gateway.settings.unread_timeout):
                await self._frames.drained()
        except TimeoutError:
            self._cut()

    def _cut(self) -> None:
        if self.ws_connection is not None:
            log.warning("connection from %s does not read: cut", self.request.remote_ip)
            self._frames.stream.close()
