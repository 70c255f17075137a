"""How a connection is read: at what pace, and what of it is thrown away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine
from typing import TYPE_CHECKING, Any

from tornado.websocket import WebSocketProtocol13

if TYPE_CHECKING:
    from asrserver.handlers.websocket import WebSocket

#: Messages of a connection after which it is others' turn: Tornado 6.6 handles all that it has read, hundreds of small
#: ones, in one turn of the loop, and five clients that flooded it so kept others waiting for 0.4 s.
TURN = 8

#: Messages that may be refused on a connection in a second, and at once; then it is read no faster. A refusal costs its
#: client less than the server.
REFUSALS = 200

#: Bytes read at a time of a message that is too large and thrown away.
DRAIN_STEP = 1 << 16

#: Longest read that is no payload of a chunk's size: frame headers, and control frames between the parts of a message.
SMALL = 125


class Brake:
    """Says of one connection when its next message may be taken."""

    def __init__(self) -> None:
        self._messages = 0
        self._paid = 0.0  # time.monotonic() up to which refusals have used up what is allowed

    def refused(self) -> None:
        """A message was refused."""
        self._paid = max(self._paid, time.monotonic() - 1.0) + 1 / REFUSALS

    @property
    def debt(self) -> float:
        """Seconds until there were no more refusals than there may be; 0 if there were not."""
        return max(0.0, self._paid - time.monotonic())

    def pause(self) -> Awaitable[None] | None:
        """None, or what to wait for after a message."""
        self._messages += 1
        debt = self.debt
        if debt:
            return asyncio.sleep(debt)
        return None if self._messages % TURN else asyncio.sleep(0)


class DrainingProtocol(WebSocketProtocol13):
    """Throws away the payload of a message that is too large, and goes on.

    Tornado 6.6 closes the connection, and with it every session on it; one message must cost one message. What is
    overridden is its one private read function; a test sends 40 MB, so a Tornado that changes it is noticed.
    """

    handler: WebSocket

    _asked = False  # a ping that was not answered yet

    def start_pinging(self) -> None:
        """Not by a task for each: Connections has one timer for all."""

    def ask(self) -> None:
        """Ping; if the ping before was not answered, close."""
        if self._asked and not self._received_pong:
            self.close(reason="ping timed out")
            return
        self._asked, self._received_pong = True, False
        self.write_ping(b"")

    async def _receive_frame_loop(self) -> None:
        # In a task of its own: in the request's, all its coroutines would stay as long as the connection does.
        self._reading = asyncio.ensure_future(self._read())

    async def _read(self) -> None:
        try:
            await super()._receive_frame_loop()
        except (asyncio.CancelledError, ValueError):  # as accept_connection() does, which is over
            self._abort()

    def _read_bytes(self, n: int) -> Coroutine[Any, Any, bytes]:
        # Four times a message: not a coroutine around a coroutine where there is nothing to throw away.
        limit = self.handler.gateway.settings.max_message
        buffered = self._fragmented_message_buffer
        held = 0 if buffered is None else len(buffered)
        if n + held <= limit or (n <= SMALL and held <= limit):
            return super()._read_bytes(n)
        return self._drain(n, buffered, held)

    async def _drain(self, n: int, buffered: bytearray | None, held: int) -> bytes:
        self.handler.too_large += held
        if buffered is not None:
            buffered.clear()
        if n <= SMALL:
            return await super()._read_bytes(n)
        self.handler.too_large += n
        while n:
            n -= len(await super()._read_bytes(min(n, DRAIN_STEP)))
        return b""
