"""WebSocket frames (RFC 6455), as the gateway and the client read and write them: Tornado's protocol on leaner feet.

Tornado 6.6 awaits its stream four times for each frame it reads and makes a task for each message it writes, and its
stream asks epoll anew for both: half of what a 100 ms chunk cost a gateway. Here the connection moves, once it is
upgraded, from Tornado's stream to a transport of the event loop, and all frames of one read are taken in one call. The
handshake, pings, closing and their timeouts are Tornado's still, through the few methods that are overridden; tests
send what would tell if a Tornado changed them.
"""

from __future__ import annotations

import asyncio
import os
import struct
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, cast

from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError, StreamClosedError
from tornado.util import _websocket_mask as masked
from tornado.websocket import WebSocketProtocol13
from tornado.websocket import _WebSocketParams as Params

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

__all__ = ["BINARY", "HEADER", "TEXT", "Params", "StreamBufferFullError", "StreamClosedError", "Wire"]

TEXT, BINARY = 1, 2

#: The first byte of a frame that is a binary message.
WHOLE_BINARY = 0x80 | BINARY

#: What a binary frame begins with, once a session has a channel: that, and the chunk's index (big endian).
HEADER = struct.Struct("!IQ")

#: Frames of one connection after which it is others' turn: what was read may be hundreds of small ones, and five
#: clients that flooded a gateway so kept others waiting for 0.4 s.
TURN = 8

#: Bytes read at a time under TLS.
STEP = 1 << 16


def _draw() -> Iterator[bytes]:
    """Masks that nobody can predict (RFC 6455, 5.3); the system is not asked for each."""
    while True:
        drawn = os.urandom(4096)
        for at in range(0, len(drawn), 4):
            yield drawn[at : at + 4]


_masks = _draw()


def _head(data: bytes, at: int) -> tuple[int, int]:
    """Where the payload of the frame at `at` begins, and its size; `data` may end before that.

    What is before the payload: two bytes, of the size two or eight more, and a client's mask of four.
    """
    begin, size = at + 2, 0
    if len(data) >= begin:
        second = data[at + 1]
        size = second & 0x7F
        if size >= 126:
            begin += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : begin], "big")
        if second & 0x80:
            begin += 4
    return begin, size


class Wire(WebSocketProtocol13):
    """One connection's frames. What its handler's `on_message` returns, if anything, is waited for before the next.

    Binary messages that were read together are handed over together, to `on_binaries`.

    Messages are not compressed. One larger than `params.max_message_size` closes the connection, unless `overflows` is
    overridden.
    """

    handler: Any
    stream: Any  # what of an IOStream the protocol uses: here Plain or Secure

    def __init__(self, handler: Any, mask_outgoing: bool, params: Params) -> None:
        super().__init__(handler, mask_outgoing, params)
        self._partial = bytearray()  # the beginning of a frame
        self._wanted = 0  # bytes that it has at least
        self._skip = 0  # bytes of a frame that are still to be thrown away
        self._skipped = 0  # its first byte
        self._ended = False
        self._moving: asyncio.Task[None] | None = None
        self._held: tuple[bytes, int] | None = None  # bytes that wait for a message before them, and where they begin

    def overflows(self, size: int, held: int) -> bool:
        """Whether a frame is thrown away that makes its message too large: of `size` bytes, after fragments of `held`.
        Asked before it is read."""
        self.close(1009, "message too big")
        self._abort()
        return False

    # -- writing -------------------------------------------------------------------------------------------------

    def send(self, opcode: int, data: bytes) -> None:
        """Write a frame; raises StreamClosedError, or StreamBufferFullError where the other end does not read."""
        size, mark = len(data), 0x80 if self.mask_outgoing else 0
        if size < 126:
            head = bytes((0x80 | opcode, mark | size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, mark | 126, size >> 8, size & 0xFF))
        else:
            head = bytes((0x80 | opcode, mark | 127)) + size.to_bytes(8, "big")
        if mark:
            mask = next(_masks)
            self.stream.write(b"".join((head, mask, masked(mask, data))))
        else:
            self.stream.write(head + data)

    @property
    def blocked(self) -> bool:
        """Whether what was written is more than the kernel takes: the other end does not read."""
        return bool(self.stream.writing())

    async def drained(self) -> None:
        """Wait until the kernel has all that was written, or the connection is gone."""
        await self.stream.drained()

    def _write_frame(self, fin: bool, opcode: int, data: bytes, flags: int = 0) -> asyncio.Future[None]:
        # Of control frames, and of Tornado's write_message. It waits for its last pong before it writes another.
        self.send(opcode, data)
        if self.blocked:
            return asyncio.ensure_future(self.drained())
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    # -- reading -------------------------------------------------------------------------------------------------

    async def _receive_frame_loop(self) -> None:
        """Take the connection over; `on_ws_connection_close` follows when it ends."""
        # In a task of its own: in the request's, all its coroutines would stay for as long.
        self._moving = asyncio.ensure_future(self._move())

    async def _move(self) -> None:
        stream = self.stream
        kind = Secure if isinstance(stream, SSLIOStream) else Plain
        self.stream = kind(stream, self.feed, self._end)
        try:
            await self.stream.run()
        except (StreamClosedError, asyncio.CancelledError):
            self._end()
        except OSError:  # there are no more files, say: it cannot be taken
            self.handler.log_exception(*sys.exc_info())
            self._end()

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._held = None
            self._abort()
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)
            # All of them refer to each other: none would be gone before a search for cycles, which is rare.
            self._moving = None
            if isinstance(self.stream, Plain | Secure):
                self.stream.forget()

    def feed(self, data: bytes) -> None:
        """Take what was read."""
        if self._held is not None:  # reading is suspended, but this was on its way
            before, at = self._held
            self._held = before[at:] + data, 0
            self.stream.pause()
            return
        at = 0
        if self._skip:
            at = min(self._skip, len(data))
            self._skip -= at
            if self._skip:
                return
            wait = self._frame(self._skipped, b"")
            if wait is not None:
                self._hold(data, at, wait)
                return
        elif self._partial:
            self._partial += data
            if len(self._partial) < self._wanted:
                return
            data, self._partial = bytes(self._partial), bytearray()
        self._take(data, at)

    def _take(self, data: bytes, at: int) -> None:
        """Take the frames in `data` from `at` on."""
        end, turn, largest = len(data), 0, self.params.max_message_size
        while not self.client_terminated:
            messages, at = self._binaries(data, at, TURN - turn)
            if messages:
                wait = self._handled(self.handler.on_binaries, messages)
                turn += len(messages)
                if wait is not None or (turn == TURN and at < end):
                    self._hold(data, at, wait)
                    return
                if at == end or self.client_terminated:
                    return
            begin, size = _head(data, at)
            if end < begin:
                self._keep(data, at, begin - at)
                return
            first, second = data[at], data[at + 1]
            if first & 0x70 or (first & 8 and (size >= 126 or not first & 0x80)):
                self._abort()  # an extension that nobody agreed on; a control frame that is long, or in parts
                return
            fragments = self._fragmented_message_buffer
            held = 0 if fragments is None else len(fragments)
            overflows = size + held > largest and self.overflows(size, held)
            if self.client_terminated:
                return
            at, before = begin + size, at
            if overflows:
                if at > end:
                    self._skip, self._skipped = at - end, first
                    return
                payload = b""
            elif at > end:
                self._keep(data, before, at - before)
                return
            else:
                payload = data[begin:at]
                if second & 0x80:
                    payload = masked(data[begin - 4 : begin], payload)
            wait = self._frame(first, payload)
            turn += 1
            if wait is not None or (turn == TURN and at < end):
                self._hold(data, at, wait)
                return
            if at == end:
                return

    def _binaries(self, data: bytes, at: int, most: int) -> tuple[list[bytes], int]:
        """The next binary messages that are whole, one a frame and below 64 KiB, if there are any, and their end."""
        messages: list[bytes] = []
        if self._fragmented_message_buffer is not None:
            return messages, at
        end, largest = len(data), min(self.params.max_message_size, 0xFFFF)
        while len(messages) < most and end - at >= 2 and data[at] == WHOLE_BINARY:
            begin, size = _head(data, at)
            after = begin + size
            if after > end or size > largest:
                break
            payload = data[begin:after]
            messages.append(masked(data[begin - 4 : begin], payload) if data[at + 1] & 0x80 else payload)
            at = after
        return messages, at

    def _keep(self, data: bytes, at: int, wanted: int) -> None:
        self._partial, self._wanted = bytearray(data[at:]), wanted

    def _frame(self, first: int, data: bytes) -> Awaitable[Any] | None:
        """Take one frame with this first byte; what to wait for before the next."""
        opcode, last = first & 0x0F, first & 0x80
        if opcode & 8:
            return self._handle_message(opcode, data)
        fragments = self._fragmented_message_buffer
        if (fragments is None) == (not opcode):
            self._abort()  # a fragment of nothing, or a message in the midst of another
            return None
        if fragments is not None:
            fragments += data
            if not last:
                return None
            opcode, data, self._fragmented_message_buffer = self._fragmented_message_opcode or 0, bytes(fragments), None
        elif not last:
            self._fragmented_message_opcode, self._fragmented_message_buffer = opcode, bytearray(data)  # type: ignore[assignment]
            return None
        if opcode == BINARY:
            return self._handled(self.handler.on_binaries, [data])
        if opcode == TEXT:
            try:
                return self._handled(self.handler.on_message, data.decode())
            except UnicodeDecodeError:
                pass
        self._abort()
        return None

    def _handled(self, take: Callable[[Any], Awaitable[Any] | None], message: Any) -> Awaitable[Any] | None:
        try:
            return take(message)
        except Exception:
            self.handler.log_exception(*sys.exc_info())
        self._abort()
        return None

    def _hold(self, data: bytes, at: int, wait: Awaitable[Any] | None) -> None:
        """Take no more until then, or until others had their turn."""
        self._held = data, at
        self.stream.pause()
        if wait is None:
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            asyncio.ensure_future(wait).add_done_callback(self._waited)

    def _waited(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self.handler.log_exception(type(error), error, error.__traceback__)
            self._abort()
        self._go_on()

    def _go_on(self) -> None:
        if self._held is None or self.client_terminated:
            return
        (data, at), self._held = self._held, None
        self._take(data, at)
        if self._held is None:
            self.stream.resume()


def _nothing(_data: bytes = b"") -> None: ...


class Plain(asyncio.Protocol):
    """A TCP connection, taken from a Tornado stream. `feed` gets what is read; `end` is called when nothing more is.

    What is written is the kernel's at once; what it does not take waits here, up to the stream's own limit.
    """

    __slots__ = (
        "_closed",
        "_drained",
        "_early",
        "_end",
        "_first",
        "_limit",
        "_stream",
        "_transport",
        "data_received",
        "io_loop",
    )

    def __init__(self, stream: IOStream, feed: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self.io_loop: IOLoop = stream.io_loop  # type: ignore[assignment]
        self._stream: IOStream | None = stream
        self.data_received = feed  # type: ignore[assignment]  # one call less for each read
        self._limit = stream.max_write_buffer_size
        self._end = end
        self._drained: asyncio.Future[None] | None = None
        self._first = b""  # what the stream has read, and nobody yet
        self._early = bytearray()  # written before there was a transport
        self._transport: asyncio.Transport | None = None
        self._closed = stream.closed()

    async def run(self) -> None:
        """Take it; raises StreamClosedError where it is gone already."""
        stream, self._stream = self._stream, None
        assert stream is not None
        try:
            await stream.write(b"")  # what was written before
            unread = stream._read_buffer_size
            self._first = await stream.read_bytes(unread) if unread else b""
            socket = stream.socket.dup()
        finally:
            stream.close()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self, socket)
        except BaseException as exc:
            socket.close()
            if isinstance(exc, OSError):
                raise StreamClosedError(exc) from exc
            raise

    # -- as a stream ---------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        if self._closed:
            raise StreamClosedError
        if self._transport is None:
            self._early += data
            return
        waiting = self._transport.get_write_buffer_size() if self._drained is not None else 0
        if waiting and self._limit is not None and waiting + len(data) > self._limit:
            raise StreamBufferFullError("the other end does not read")
        self._transport.write(data)

    def writing(self) -> bool:
        return self._drained is not None

    async def drained(self) -> None:
        if self._drained is not None:
            await asyncio.shield(self._drained)

    def closed(self) -> bool:
        return self._closed

    def close(self) -> None:
        self._closed = True
        if self._transport is None:
            return
        if self._drained is None:
            self._transport.close()
        else:  # it would wait for who does not read
            self._transport.abort()

    def pause(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def forget(self) -> None:
        """It is over: let go of whom it was read for."""
        self.data_received, self._end = _nothing, _nothing  # type: ignore[assignment]

    # -- as asyncio's protocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        transport.set_write_buffer_limits(0)
        if self._early:
            transport.write(bytes(self._early))
            self._early.clear()
        if self._closed:
            transport.close()
        elif self._first:
            first, self._first = self._first, b""
            self.data_received(first)

    def eof_received(self) -> None:
        self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._closed = True
        self.resume_writing()
        self._transport = None
        self._end()

    def pause_writing(self) -> None:
        self._drained = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None


class Secure:
    """The same under TLS, whose state cannot be taken from Tornado's stream: it goes on to be read."""

    def __init__(self, stream: SSLIOStream, feed: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self.io_loop = stream.io_loop
        self._end = end
        self._stream = stream
        self._feed = feed
        self._going = asyncio.Event()
        self._going.set()
        self._last: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Until the connection is over; raises StreamClosedError."""
        while True:
            self._feed(await self._stream.read_bytes(STEP, partial=True))
            await self._going.wait()

    def write(self, data: bytes) -> None:
        self._last = self._stream.write(data)

    def writing(self) -> bool:
        return self._stream.writing()

    async def drained(self) -> None:
        if self._last is not None:
            await asyncio.wait([self._last])

    def closed(self) -> bool:
        return self._stream.closed()

    def forget(self) -> None:
        """It is over: let go of whom it was read for."""
        self._feed, self._end = _nothing, _nothing

    def close(self) -> None:
        self._stream.close()
        self.resume()

    def pause(self) -> None:
        self._going.clear()

    def resume(self) -> None:
        self._going.set()
