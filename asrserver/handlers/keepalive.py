"""What keeps an open connection open, and small: pings and the look for idle ones, by one timer for all of them.

Most connections of a busy gateway say nothing for minutes. Tornado 6.6 spends 20 KB of memory on each: six coroutines
of the request that it began as, that request with its headers, and a task with a timer that pings. None of it is
needed after the upgrade; without, it is half (tools/bench_growth.py connections).
"""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Protocol

from tornado.httputil import HTTPServerRequest

from asrserver.auth import Key
from asrserver.config import Settings
from asrserver.handlers.flow_control import Rests

log = logging.getLogger("asrserver.websocket")

#: Seconds between looks at the connections, at most. To see that one is not due takes 0.1 µs.
LOOK = 1.0


class Connection(Protocol):
    """An open WebSocket, to those who keep it."""

    due: float
    key: Key | None

    @property
    def resumable(self) -> bool: ...

    def look(self, now: float) -> float: ...

    def close(self, code: int | None = None, reason: str | None = None) -> None: ...


class Connections(set[Connection]):
    """The open WebSockets of one gateway. Each is looked at when it is `due`, by the loop's clock."""

    def __init__(self, settings: Settings) -> None:
        super().__init__()
        self.rests = Rests()
        self._every = min(LOOK, settings.ping_interval / 4, (settings.idle_timeout or math.inf) / 4)
        self._timer: asyncio.TimerHandle | None = None

    def add(self, socket: Connection) -> None:
        super().add(socket)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._every, self._look)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time()
        for socket in [socket for socket in self if socket.due <= now]:
            try:
                socket.due = socket.look(now)
            except Exception:
                log.exception("a connection could not be looked at")
                socket.due = now + self._every
        self._timer = asyncio.get_running_loop().call_later(self._every, self._look) if self else None


class Bygone:
    """What is asked of a request after its connection has become a WebSocket; the rest of it is let go of."""

    __slots__ = ("host", "method", "path", "protocol", "remote_ip", "uri")

    def __init__(self, request: HTTPServerRequest) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(request, name))
