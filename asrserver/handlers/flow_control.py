"""How a connection is read: at what pace, and what of it is thrown away."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable
from typing import Protocol

from asrserver.process.coalescing import MIN_TIMER_SECONDS, LingerPolicy
from asrserver.protocol.frames import SERVER_ERROR, FrameProtocol

#: Messages that may be refused on a connection in a second, and at once; then it is read no faster. A refusal costs its
#: client less than the server.
REFUSALS = 200

#: Longest payload that is none of a chunk's size: frame headers, and control frames between the parts of a message.
SMALL = 125

#: Messages a second, of all connections, up to which none rests; seconds that a connection rests after it was read for
#: each one more; and the most. Every read costs as much as the message in it, and what is gathered waits longer.
FREE = 1000
EACH = 125e-6
LONGEST = 0.5

#: Bytes in a read from which on there is more to be read, most likely.
MUCH = 1 << 15


class Rests:
    """Connections that are not read just now: what comes of one while it rests is read in one go."""

    def __init__(self) -> None:
        self._linger = LingerPolicy(FREE, EACH, LONGEST)
        self._resting: deque[tuple[float, DrainingWire]] = deque()  # and since when; the first to go on comes first

    def read(self, wire: DrainingWire, messages: int, size: int, may_rest: bool) -> None:
        """A connection was read: so many messages in so many bytes."""
        now = time.monotonic()
        self._linger.record(now, messages)
        if self._linger.delay and may_rest and size < MUCH and wire.rest():
            if not self._resting:
                asyncio.get_running_loop().call_later(max(MIN_TIMER_SECONDS, self._linger.delay), self._tick)
            self._resting.append((now, wire))

    def _tick(self) -> None:
        until = time.monotonic() - self._linger.delay
        while self._resting and (left := self._resting[0][0] - until) <= 0:
            self._resting.popleft()[1].go_on()
        if self._resting:
            asyncio.get_running_loop().call_later(max(MIN_TIMER_SECONDS, left), self._tick)


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


class Reader(Protocol):
    """Who takes what is read."""

    rests: Rests
    messages: int  # taken so far
    too_large: int  # bytes that were thrown away and not told of yet

    @property
    def waits_for_an_answer(self) -> bool: ...


class DrainingWire(FrameProtocol):
    """Throws away the payload of a message that is too large, and goes on.

    Tornado closes the connection, and with it every session on it; one message must cost one message.
    """

    handler: Reader

    _rests = False  # it is not read just now
    _asked = False  # a ping that was not answered yet

    def feed(self, data: bytes) -> None:
        handler = self.handler
        before, waits = handler.messages, handler.waits_for_an_answer
        super().feed(data)
        messages = handler.messages - before
        # Who sends one chunk and then the next when it is acknowledged must not be slowed down by what others send.
        handler.rests.read(self, messages, len(data), messages > 1 or not waits)

    def rest(self) -> bool:
        """Do not read for a while, until `go_on`; False if it rests already, waits for a message, or is over."""
        if self._rests or self._held is not None or self.client_terminated:
            return False
        self._rests = True
        self.stream.pause()
        return True

    def go_on(self) -> None:
        """It has rested."""
        self._rests = False
        if self._held is None:
            self.stream.resume()

    def start_pinging(self) -> None:
        """Not by a task for each: Connections has one timer for all."""

    def ask(self) -> None:
        """Ping; if the ping before was not answered, close."""
        if self._asked and not self._received_pong:
            self.close(SERVER_ERROR, "ping timed out")
            return
        self._asked, self._received_pong = True, False
        self.write_ping(b"")

    def discards(self, size: int, held: int) -> bool:
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
