"""How a connection is read: at what pace, and what of it is thrown away."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from asrserver.wire import Wire

if TYPE_CHECKING:
    from asrserver.handlers.websocket import WebSocket

#: Messages that may be refused on a connection in a second, and at once; then it is read no faster. A refusal costs its
#: client less than the server.
REFUSALS = 200

#: Longest payload that is none of a chunk's size: frame headers, and control frames between the parts of a message.
SMALL = 125


class Brake:
    """Says of one connection when its next message may be taken."""

    def __init__(self) -> None:
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
        return asyncio.sleep(debt) if self._paid and (debt := self.debt) else None


class DrainingWire(Wire):
    """Throws away the payload of a message that is too large, and goes on.

    Tornado closes the connection, and with it every session on it; one message must cost one message.
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

    def overflows(self, size: int, held: int) -> bool:
        """Whether the frame is not read either; what was kept of its message goes too."""
        if size <= SMALL and held <= self.params.max_message_size:
            return False
        handler = self.handler
        handler.too_large += held
        if self._fragmented_message_buffer is not None:
            self._fragmented_message_buffer.clear()
        if size <= SMALL:
            return False
        handler.too_large += size
        return True
