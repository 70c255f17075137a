"""The Python client: sessions that survive a bad network. The command line and the tests use it.

    async with await Client.connect("ws://127.0.0.1:8080/ws/asr") as client:
        session = await client.start(language="en")
        await session.send(open("hello.wav", "rb").read())
        print((await session.finish())["text"], *session.errors)

When the connection is lost, the client connects again, to the next of its URLs, and resumes its sessions: it sends the
unacknowledged chunks again, and delivers every result to the caller exactly once.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from tornado.httpclient import HTTPRequest

from asrserver.client.connection import ClientConnection, ConnectionObserver, authorization
from asrserver.client.errors import ConnectionLost, Event, HandshakeRefused
from asrserver.client.session import WINDOW, ClientSession

#: Seconds that one attempt to connect may take.
CONNECT_TIMEOUT = 10.0

#: Seconds without a connection after which the client gives up.
RECONNECT_TIMEOUT = 60.0

#: Longest pauses before the first and before later attempts to connect again, in seconds; each pause is a random part
#: of its longest (full jitter). Otherwise all clients of a gateway that stops would reach the next one at once.
FIRST_BACKOFF = 0.5
MAX_BACKOFF = 8.0

#: Factor of the first pause after close code 1013, "try again later".
TRY_LATER = 1013
TRY_LATER_FACTOR = 8

#: Close codes (RFC 6455, 7.4.1) after which the client does not connect again: the server refuses what it sent.
FATAL_CLOSE_CODES = frozenset({1002, 1003, 1007, 1008, 1009, 1010})

#: HTTP statuses below 500 after which another attempt may succeed.
RETRYABLE_STATUSES = frozenset({408, 425, 429})

#: Characters of the longest session id (asrserver.protocol.options).
MAX_ID_LENGTH = 128


class Client:
    """A connection to a server, made again whenever it is lost, and the sessions on it. Use `connect` to make one."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str,
        timeout: float,
        reconnect_timeout: float,
        window: int,
        observer: ConnectionObserver | None = None,
    ) -> None:
        self.window = window
        self.reconnect_timeout = reconnect_timeout
        self._urls = urls
        self._next_url = 0
        self._key = key
        self._timeout = timeout
        self._observer = observer or ConnectionObserver()
        self.connection: ClientConnection | None = None
        self.channels: Iterator[int] = itertools.count()
        self._sessions: dict[str, ClientSession] = {}
        self._failure: Exception | None = None
        self._complaint: Event = {}  # the last error that concerns no session
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    async def connect(
        cls,
        url: str | Sequence[str],
        timeout: float = CONNECT_TIMEOUT,
        key: str = "",
        *,
        reconnect_timeout: float = RECONNECT_TIMEOUT,
        window: int = WINDOW,
        retry: bool = False,
        observer: ConnectionObserver | None = None,
    ) -> Client:
        """Connect to the first of the URLs that answers.

        Args:
            url: A ws:// or wss:// URL, or several.
            timeout: Seconds that each attempt may take.
            key: The API key, if the server requires one.
            reconnect_timeout: Seconds to try again after a lost connection, and after a refused start.
            window: Chunks of a session that may wait for their acknowledgement.
            retry: Try again for `reconnect_timeout` if no URL answers at first.
            observer: Receives what happens to the connection.

        Raises:
            HandshakeRefused: The last URL refuses the connection; with `retry`: for good, as for a wrong API key.
            OSError: The last URL cannot be reached. Not with `retry`.
            ConnectionLost: With `retry`: there is no connection after `reconnect_timeout`.
            ValueError: One of them is no URL of a WebSocket.
        """
        urls = [url] if isinstance(url, str) else list(url)
        for one in urls:
            if not one.lower().startswith(("ws://", "wss://")):
                raise ValueError(f"{one!r} is no URL of a WebSocket, such as ws://127.0.0.1:8080/ws/asr")
        client = cls(urls, key, timeout, reconnect_timeout, window, observer)
        connection: ClientConnection | None = None
        for left in reversed(range(len(urls))):
            try:
                connection = await client._dial()
                break
            except (OSError, HandshakeRefused) as exc:
                if left:
                    continue
                if not retry or _is_permanent(exc):
                    raise
                connection = await client._reconnect(None, client._refused(exc))
        client._task = asyncio.create_task(client._run(connection), name="asrserver-client")
        return client

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; the server ends unfinished sessions as `interrupted`."""
        self._closing.set()
        if self.connection is not None:
            self.connection.close()
        if self._task is not None:
            await self._task

    async def start(self, session_id: str = "", **options: Any) -> ClientSession:
        """Open a session.

        If the server is overloaded, the client asks it again, for `reconnect_timeout` at most.

        Args:
            session_id: The session's id; without one the client makes it.
            options: The options of the protocol's `start` message.

        Raises:
            ServerError: The server refuses the session.
            ConnectionLost: There is no connection any more.
            ValueError: The id is in use or too long.
        """
        if self._failure is not None:
            raise self._failure
        # The id is never left to the server: if the connection is lost before the answer, it finds the session.
        session = ClientSession(self, session_id or str(uuid.uuid4()), options)
        if session.id in self._sessions or len(session.id) > MAX_ID_LENGTH:
            raise ValueError(f"session_id {session.id!r} is in use, or longer than {MAX_ID_LENGTH} characters")
        self._sessions[session.id] = session
        try:
            session.connected(self.connection)
            await session.opened
        except BaseException:
            self.forget(session)
            raise
        return session

    # -- for its sessions (SessionClient) ------------------------------------------------------------------------

    @property
    def session_count(self) -> int:
        """Open sessions."""
        return len(self._sessions)

    def forget(self, session: ClientSession) -> None:
        """Remove a session that is over."""
        if self._sessions.get(session.id) is session:
            del self._sessions[session.id]
        session.disconnected()

    # -- the connection ------------------------------------------------------------------------------------------

    async def _run(self, connection: ClientConnection | None) -> None:
        """Serve one connection after another, until there is none any more; then fail the open sessions."""
        failure: Exception = ConnectionLost("the connection was closed")
        try:
            while connection is not None:
                await self._read(connection)
                code, reason = connection.close_code, connection.close_reason
                if code in FATAL_CLOSE_CODES and not self._closing.is_set():
                    said = self._complaint.get("message") if reason == self._complaint.get("code") else None
                    why = said or reason
                    raise ConnectionLost(f"the server closed the connection: {code} {why or ''}".strip())
                connection = await self._reconnect(code)
        except (OSError, ConnectionLost) as exc:
            failure = exc
        except Exception as exc:
            failure = exc
            raise
        finally:
            self._failure = failure
            for session in list(self._sessions.values()):
                session.fail(failure)

    async def _read(self, connection: ClientConnection) -> None:
        """Resume the sessions on a new connection, and wait for its end."""
        self.connection = connection
        if self._closing.is_set():  # during the handshake
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
            self._observer.lost(connection.close_code)
        connection.close()  # in every case: Tornado warns of a connection that was lost and not closed
        for session in self._sessions.values():
            session.disconnected()

    def _receive(self, message: str | bytes) -> None:
        """Hand a message to its session; one without an id concerns all, such as the refusal of a chunk by its size."""
        event = orjson.loads(message)
        self._observer.received(event)
        if "session_id" in event:
            session = self._sessions.get(event["session_id"])
            if session is not None:
                session.receive(event)
            return
        self._complaint = event
        for session in list(self._sessions.values()):
            if not session.opening:
                session.receive(event)

    async def _reconnect(self, code: int | None, least: float = 0.0) -> ClientConnection | None:
        """Make a new connection.

        Args:
            code: The close code of the last one.
            least: Seconds to wait before the first attempt, at least.

        Returns:
            The connection; None if the client is being closed.

        Raises:
            HandshakeRefused: A server refuses it for good.
            ConnectionLost: There is none after `reconnect_timeout`.
        """
        deadline = time.monotonic() + self.reconnect_timeout
        longest = FIRST_BACKOFF * (TRY_LATER_FACTOR if code == TRY_LATER else 1)
        while True:
            pause = least + random.uniform(0, longest)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), min(pause, max(0.0, deadline - time.monotonic())))
            if self._closing.is_set():
                return None
            try:
                return await self._dial()
            except (OSError, HandshakeRefused) as exc:
                if _is_permanent(exc):
                    raise
                if time.monotonic() > deadline:
                    raise ConnectionLost(f"no connection for {self.reconnect_timeout:.0f} s: {exc}") from exc
                least = self._refused(exc)
            longest = min(longest * 2, MAX_BACKOFF)

    async def _dial(self) -> ClientConnection:
        """Make one attempt to connect, to the next URL; raises HandshakeRefused and OSError."""
        url = self._urls[self._next_url % len(self._urls)]
        self._next_url += 1
        limit = self._timeout  # of the handshake too: Tornado's own is 20 s
        request = HTTPRequest(url, headers=authorization(self._key), connect_timeout=limit, request_timeout=limit)
        began = time.monotonic()
        connection = ClientConnection(request, self._receive)
        await connection.opened()
        self._observer.connected(time.monotonic() - began)
        return connection

    def _refused(self, reason: OSError | HandshakeRefused) -> float:
        """Tell the observer of a failed attempt; returns the seconds to wait before the next one, at least."""
        pause = reason.retry_after if isinstance(reason, HandshakeRefused) else 0.0
        self._observer.refused(reason, pause)
        return pause


def _is_permanent(error: OSError | HandshakeRefused) -> bool:
    """Whether another attempt would fail in the same way."""
    return isinstance(error, HandshakeRefused) and error.status < 500 and error.status not in RETRYABLE_STATUSES
