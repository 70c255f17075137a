"""How fast the gateway reads its connections, and which messages it discards unread."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sized
from typing import Any, Protocol

from asrserver.gateway.held_bytes import HeldBytes
from asrserver.process.coalescing import MIN_TIMER_SECONDS, LingerPolicy
from asrserver.protocol.frames import BINARY, CONTROL, SERVER_ERROR, FrameProtocol, Params

#: Refused messages a second of one connection, at most: beyond it, its messages wait. A refusal costs the client less
#: than the server.
REFUSALS_PER_SECOND = 200

#: The frames of a connection have a budget: so much a second for the connection, and for each of its sessions. A binary
#: message or a control frame costs 1, any other frame 2; live audio is 10 to 50 messages a second. What is not spent is
#: saved, for so many seconds.
COST_PER_SECOND = 200
COST_PER_SESSION = 100
SAVED_SECONDS = 4.0

#: The largest payload of a control frame, in bytes. A frame that is no larger is not discarded: it may be a ping.
CONTROL_BYTES = 125

#: Up to so many messages a second, of all connections, reading is never paused. Above that, a connection is paused
#: after each read: for so many seconds for each further message a second, up to a maximum. A read costs as much as the
#: handling of one message, and after a pause it brings several.
FREE_MESSAGES_PER_SECOND = 1500
PAUSE_SECONDS_EACH = 125e-6
MAX_PAUSE_SECONDS = 0.5

#: A read of so many bytes has most likely left more in the kernel.
LARGE_READ_BYTES = 1 << 15


async def in_turns(pieces: Iterable[bytes]) -> bytes:
    """Join pieces, giving way to others after each: to make one takes time."""
    made = []
    for piece in pieces:
        made.append(piece)
        await asyncio.sleep(0)
    return b"".join(made)


class ReadCoalescer:
    """Under load, pauses a connection after each read, so that the next read brings several messages."""

    def __init__(self) -> None:
        self._linger = LingerPolicy(FREE_MESSAGES_PER_SECOND, PAUSE_SECONDS_EACH, MAX_PAUSE_SECONDS)
        # When each connection was paused; the first is resumed first.
        self._paused: deque[tuple[float, ServerFrameProtocol]] = deque()

    def after_read(self, protocol: ServerFrameProtocol, messages: int, size: int, may_pause: bool) -> None:
        """Count a read, and pause its connection if there is load.

        Args:
            protocol: The connection.
            messages: Messages that the read completed.
            size: Bytes that were read.
            may_pause: Whether the connection may be paused at all.
        """
        now = time.monotonic()
        self._linger.record(now, messages)
        if self._linger.delay and may_pause and size < LARGE_READ_BYTES and protocol.pause_reading():
            if not self._paused:
                asyncio.get_running_loop().call_later(max(MIN_TIMER_SECONDS, self._linger.delay), self._resume_due)
            self._paused.append((now, protocol))

    def _resume_due(self) -> None:
        until = time.monotonic() - self._linger.delay
        while self._paused and (left := self._paused[0][0] - until) <= 0:
            self._paused.popleft()[1].resume_reading()
        if self._paused:
            asyncio.get_running_loop().call_later(max(MIN_TIMER_SECONDS, left), self._resume_due)


class RefusalThrottle:
    """Slows down a connection whose messages are refused, to REFUSALS_PER_SECOND."""

    def __init__(self) -> None:
        self._used_until = 0.0  # time.monotonic() at which the refusals so far are within the limit

    def record_refusal(self) -> None:
        """Count a refused message."""
        self._used_until = max(self._used_until, time.monotonic() - 1.0) + 1 / REFUSALS_PER_SECOND

    @property
    def debt(self) -> float:
        """Seconds until the refusals so far are within the limit; 0 if they are."""
        return max(0.0, self._used_until - time.monotonic())

    def pause(self) -> Awaitable[None] | None:
        """What to wait for before the next message is handled, or None."""
        return asyncio.sleep(debt) if self._used_until and (debt := self.debt) else None


class CostBudget:
    """The budget for the frames of one connection: a flood of small ones is read slowly, and so holds up its sender."""

    def __init__(self) -> None:
        self._used_until = 0.0  # time.monotonic() at which what was spent is within the budget
        self._spent = 0  # since then was last computed

    def spend(self, cost: int) -> None:
        """Count the cost of frames."""
        self._spent += cost

    def debt(self, sessions: int) -> float:
        """Seconds until what was spent is within the budget; 0 if it is.

        Args:
            sessions: Sessions on the connection.
        """
        now = time.monotonic()
        took = self._spent / (COST_PER_SECOND + COST_PER_SESSION * sessions)
        self._used_until, self._spent = max(self._used_until, now - SAVED_SECONDS) + took, 0
        return max(0.0, self._used_until - now)


class FrameReader(Protocol):
    """What ServerFrameProtocol needs of its handler.

    Attributes:
        sessions: The sessions on the connection.
        coalescer: Told of each read.
        key_id: The id of the client's API key; may be empty.
        held: Counts the bytes that are kept of incomplete messages.
        messages: Messages that were handled so far.
        discarded: Bytes of the current message that were discarded: it is too large, or there is no room for it.
    """

    sessions: Sized
    coalescer: ReadCoalescer
    held: HeldBytes
    messages: int
    discarded: int

    @property
    def key_id(self) -> str: ...

    @property
    def awaits_ack(self) -> bool:
        """Whether the client may be waiting for the acknowledgement of its last chunk before it sends the next."""
        ...


class ServerFrameProtocol(FrameProtocol):
    """The frames of a gateway's connection. A message that is too large is discarded, and the connection stays open.

    Tornado would close the connection, and so interrupt every session on it.
    """

    handler: FrameReader

    #: Whether the server closed the connection, and not the client.
    dismissed = False

    def __init__(self, handler: Any, mask_outgoing: bool, params: Params) -> None:
        super().__init__(handler, mask_outgoing, params)
        self._budget = CostBudget()

    _kept_bytes = 0  # of an incomplete message, as it was counted last
    _reading_paused = False  # by the coalescer
    _ping_sent = False
    _alive = False  # since the last ping something was read, or reading was suspended

    def feed(self, data: bytes) -> None:
        """Handle what was read."""
        handler = self.handler
        self._alive = True
        before, awaits_ack = handler.messages, handler.awaits_ack
        super().feed(data)
        debt = self._budget.debt(len(handler.sessions)) if self._held is None else 0.0
        if debt and self.pause_reading():
            asyncio.get_running_loop().call_later(debt, self.resume_reading)
        if self._kept_bytes or self._partial or self._take or self._fragmented_message_buffer:
            self._count_kept()
        messages = handler.messages - before
        # A client that waits for each acknowledgement must not be slowed down by the load of others.
        handler.coalescer.after_read(self, messages, len(data), messages > 1 or not awaits_ack)

    def _count_kept(self) -> None:
        """Count what is kept of an incomplete message, and drop it if there is no room for it."""
        before, self._kept_bytes = self._kept_bytes, self.kept
        handler = self.handler
        if handler.held.grew(handler.key_id, before, self._kept_bytes):
            handler.discarded += self.drop()
            before, self._kept_bytes = self._kept_bytes, self.kept
            handler.held.add(handler.key_id, self._kept_bytes - before)

    def _end(self) -> None:
        self.handler.held.add(self.handler.key_id, -self._kept_bytes)
        self._kept_bytes = 0
        super()._end()

    def _call(self, take: Callable[[Any], Awaitable[Any] | None], message: Any) -> Awaitable[Any] | None:
        if self._kept_bytes:  # the message is complete now, and counted by whoever takes it
            self._count_kept()
        return super()._call(take, message)

    def pause_reading(self) -> bool:
        """Stop reading until `resume_reading`; False if reading is suspended already, or the connection is over."""
        if self._reading_paused or self._held is not None or self.client_terminated:
            return False
        self._reading_paused = True
        self.stream.pause()
        return True

    def resume_reading(self) -> None:
        """End the pause."""
        self._reading_paused, self._alive = False, True
        if self._held is None:
            self.stream.resume()

    def _binaries(self, data: bytes, at: int, most: int) -> tuple[list[bytes], int]:
        messages, at = super()._binaries(data, at, most)
        self._budget.spend(len(messages))
        return messages, at

    def _frame(self, first: int, data: bytes | bytearray) -> Awaitable[Any] | None:
        self._budget.spend(1 if first & CONTROL or first & 0x0F == BINARY else 2)
        return super()._frame(first, data)

    def _hold(self, data: bytes, at: int, wait: Awaitable[Any] | None) -> None:
        debt = self._budget.debt(len(self.handler.sessions))
        super()._hold(data, at, asyncio.sleep(debt) if debt and wait is None else wait)

    def _go_on(self) -> None:
        self._alive = True
        super()._go_on()

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake, or answer the client's."""
        self.dismissed = self.dismissed or not self.client_terminated
        super().close(code, reason)

    def start_pinging(self) -> None:
        """Do nothing: Tornado would start a task for each connection. ConnectionRegistry has one timer for all."""

    def ping(self) -> None:
        """Send a ping, or close the connection if nothing was read since the last one.

        Any bytes count as a sign of life, not only the pong: it may be queued behind a whole file. While reading is
        suspended nothing can be read, which is not the client's fault.

        Raises:
            StreamClosedError: The connection is closed.
            StreamBufferFullError: The client does not read.
        """
        suspended = self._reading_paused or self._held is not None
        if self._ping_sent and not self._alive and not suspended:
            self.close(SERVER_ERROR, "ping timed out")
            return
        self._ping_sent, self._alive = True, False
        self.write_ping(b"")

    def discards(self, size: int, held: int) -> bool:
        """Discard a frame that makes its message too large, and what was kept of the message; a small frame is read."""
        if size <= CONTROL_BYTES and held <= self.params.max_message_size:
            return False
        handler = self.handler
        handler.discarded += held
        if self._fragmented_message_buffer is not None:
            self._fragmented_message_buffer.clear()
        if size <= CONTROL_BYTES:
            return False
        handler.discarded += size
        return True
