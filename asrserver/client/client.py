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
from collections.abc import Sequence
from typing import Any

import orjson
from tornado.httpclient import HTTPClientError, HTTPRequest

from asrserver.client.connection import ClientConnection, Watch, authorization
from asrserver.client.errors import ConnectionLost
from asrserver.client.session import WINDOW, ClientSession

#: Seconds without a connection after which it is given up.
PATIENCE = 60.0

#: Longest pauses between tries to connect, in seconds: the first, and the last. Each is a random part of its longest
#: (full jitter), or all clients of a gateway that stops would be at the next one in the same moment.
FIRST_PAUSE = 0.5
LAST_PAUSE = 8.0

#: Close codes (RFC 6455, 7.4.1) after which trying again is no use: what this client says or is, is refused.
REFUSED = frozenset({1002, 1003, 1007, 1008, 1009, 1010})

#: HTTP statuses below 500 that are worth another try.
NOT_YET = frozenset({408, 425, 429})


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
        self.connection: ClientConnection | None = None
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
        connection: ClientConnection | None = None
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

    async def _run(self, connection: ClientConnection | None) -> None:
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

    async def _read(self, connection: ClientConnection) -> None:
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

    async def _again(self, code: int | None, least: float = 0.0) -> ClientConnection | None:
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

    async def _dial(self) -> ClientConnection:
        url = self._urls[self._turn % len(self._urls)]
        self._turn += 1  # whatever becomes of it, the next try is at the next one
        request = HTTPRequest(url, headers=authorization(self._key), connect_timeout=self._timeout)
        began = time.monotonic()
        made = ClientConnection(request, self._take)
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
