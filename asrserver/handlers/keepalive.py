"""The open connections of a gateway: one timer for the pings of all, and little memory for each.

Most connections of a busy gateway are silent for minutes. Tornado 6.6 spends 20 KB of memory on each: six coroutines
of the request that it began as, that request with its headers, and a task with a timer that pings. None of it is
needed after the upgrade; without it, it is half (tools/bench_growth.py connections).
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

from tornado.httputil import HTTPServerRequest

from asrserver.auth.keys import Key
from asrserver.config import Settings
from asrserver.handlers.flow_control import ReadCoalescer

log = logging.getLogger("asrserver.websocket")

#: Seconds between checks of the connections, at most. To see that one is not due takes 0.1 µs.
MAX_CHECK_SECONDS = 1.0


class OpenConnection(Protocol):
    """An open WebSocket, as ConnectionRegistry sees it.

    Attributes:
        due: When to check it next, by the event loop's clock.
        key: The client's API key; None while the server has no keys.
    """

    due: float
    key: Key | None

    @property
    def resumable(self) -> bool:
        """Whether its client loses nothing with the connection: it can resume all its sessions."""
        ...

    def check(self, now: float) -> float:
        """Ping, or close an idle connection; when to check it next."""
        ...

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake."""
        ...


class ConnectionRegistry(set[OpenConnection]):
    """The open WebSockets of one gateway. Each is checked when it is `due`.

    Attributes:
        coalescer: Pauses their reading while many messages come.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.coalescer = ReadCoalescer()
        self._every = min(MAX_CHECK_SECONDS, settings.ping_interval / 4, (settings.idle_timeout or math.inf) / 4)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, connection: OpenConnection) -> None:
        """Add a connection, and start the timer with the first one."""
        super().add(connection)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._check_due)

    def _check_due(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in [connection for connection in self if connection.due <= now]:
            try:
                connection.due = connection.check(now)
            except Exception:
                log.exception("a connection could not be checked")
                connection.due = now + self._every
        self._timer = asyncio.get_running_loop().call_later(self._every, self._check_due) if self else None


class RequestSnapshot:
    """What is still asked of a request after its connection was upgraded; its headers and the rest are freed."""

    __slots__ = ("host", "method", "path", "protocol", "remote_ip", "uri")

    def __init__(self, request: HTTPServerRequest) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(request, name))
