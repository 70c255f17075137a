"""Accepting connections on a listening socket that several gateways share."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from typing import Any

from tornado.netutil import add_accept_handler

log = logging.getLogger("asrserver.app")

#: Errors of accept() where this machine or process can have no further connection, and seconds until the next try.
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
ACCEPT_PAUSE = 1.0


class _Listener:
    """A listening socket, as Tornado's accept handler uses one; `pause` is called when no connection can be taken."""

    def __init__(self, listening: socket.socket, pause: Callable[[OSError], None]) -> None:
        self.fileno = listening.fileno
        self.close = listening.close
        self._socket = listening
        self._pause = pause

    def accept(self) -> tuple[socket.socket, Any]:
        try:
            return self._socket.accept()
        except OSError as exc:
            if exc.errno not in NO_ROOM:
                raise
            self._pause(exc)
            raise BlockingIOError from exc  # which ends the handler's turn


class Acceptor:
    """Accepts connections until it is stopped.

    While the process has no file descriptor left, new connections wait in the kernel: Tornado would try again at once,
    with a traceback for each try.

    Args:
        listening: The socket.
        take: Called with each connection and its address.
    """

    def __init__(self, listening: socket.socket, take: Callable[[socket.socket, Any], None]) -> None:
        self._socket = listening
        self._take = take
        self._remove: Callable[[], None] = lambda: None
        self._stopped = False
        self._accept()

    def stop(self) -> None:
        """Accept no more."""
        self._stopped = True
        self._remove()

    def _accept(self) -> None:
        if not self._stopped:
            self._remove = add_accept_handler(_Listener(self._socket, self._pause), self._take)  # type: ignore[arg-type]

    def _pause(self, reason: OSError) -> None:
        log.warning("no connection can be accepted: %s; trying again in %g s", reason, ACCEPT_PAUSE)
        self._remove()
        asyncio.get_running_loop().call_later(ACCEPT_PAUSE, self._accept)
