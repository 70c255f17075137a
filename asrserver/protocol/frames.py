"""WebSocket frames (RFC 6455), as the gateway and the Python client read and write them.

This is Tornado's protocol with another way of reading and writing. Tornado 6.6 awaits its stream four times for each
frame that it reads, makes a task for each message that it writes, and its stream asks epoll anew for both: half of
what a 100 ms chunk cost a gateway. Here an upgraded connection moves from Tornado's stream to a transport of the event
loop (transports.py), and all frames of one read are handled in one call. The handshake, pings, closing and their
timeouts are still Tornado's, through the few methods that are overridden; the tests would show if a new Tornado
changed them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from typing import Any

from tornado.iostream import SSLIOStream, StreamBufferFullError, StreamClosedError
from tornado.util import _websocket_mask as apply_mask
from tornado.websocket import WebSocketProtocol13
from tornado.websocket import _WebSocketParams as Params

from asrserver.protocol.transports import TcpTransport, TlsTransport

__all__ = ["BINARY", "TEXT", "FrameProtocol", "Params", "StreamBufferFullError", "StreamClosedError"]

log = logging.getLogger("asrserver.frames")

#: Opcodes of the frames that carry messages, and of control frames.
TEXT, BINARY = 1, 2
CLOSE, PING, PONG = 8, 9, 10

#: Bits of a frame's first two bytes: the last frame of a message, reserved for extensions, a control frame's opcode;
#: the payload is masked.
FIN, RESERVED, CONTROL = 0x80, 0x70, 0x08
MASKED = 0x80

#: The first byte of a frame that is a whole binary message.
WHOLE_BINARY = FIN | BINARY

#: Close codes of RFC 6455, 7.4.1.
PROTOCOL_ERROR, INVALID_TEXT, TOO_LARGE, SERVER_ERROR = 1002, 1007, 1009, 1011

#: What stands for the code of a close frame that has none; the code is None where there was no close frame.
NO_STATUS = 1005

#: The codes that a close frame may have: RFC 6455, 7.4, and its registry of close codes.
CLOSE_CODES = frozenset((*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)))

#: Frames of one connection that are handled before other connections get their turn. One read may hold hundreds of
#: small frames: five clients that flooded a gateway made all others wait for 0.4 s.
FRAMES_PER_TURN = 8


def _random_masks() -> Iterator[bytes]:
    """Masks of four unpredictable bytes (RFC 6455, 5.3), drawn from the system 1024 at a time."""
    while True:
        drawn = os.urandom(4096)
        for at in range(0, len(drawn), 4):
            yield drawn[at : at + 4]


_masks = _random_masks()


def _close_error(data: bytes) -> tuple[int, str] | None:
    """Check a close frame's payload: nothing, or a code of two bytes and a reason in UTF-8 (RFC 6455, 5.5.1).

    Returns:
        The close code and the reason that answer it where it is wrong, or None.
    """
    if len(data) == 1 or (data and int.from_bytes(data[:2], "big") not in CLOSE_CODES):
        return PROTOCOL_ERROR, "a close frame has no code, or a known one"
    try:
        data[2:].decode()
    except UnicodeDecodeError:
        return INVALID_TEXT, "the reason of a close frame must be UTF-8"
    return None


#: Bytes of handled frames that are kept, rather than copying what follows them, while reading is suspended.
MAX_HANDLED = 1 << 16

#: Bytes before the payload of a frame at most.
MAX_HEAD = 14

#: Bytes of a payload from which it is unmasked while it arrives, and of a message from which it is handed over in a
#: turn of its own. Memory for 30 MB takes 10 ms and more: to copy, unmask, decode and parse them took 90 in one step.
LARGE_PAYLOAD = 1 << 16
LARGE_MESSAGE = 1 << 20


def _payload_bounds(data: bytes, at: int) -> tuple[int, int]:
    """Find the payload of the frame that begins at `at`.

    Before the payload stand two bytes, two or eight more for a longer size, and four for a mask.

    Returns:
        Where the payload begins, and its size in bytes. `data` may end before that: then the size is not valid.
    """
    begin, size = at + 2, 0
    if len(data) >= begin:
        second = data[at + 1]
        size = second & 0x7F
        if size >= 126:
            begin += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2 : begin], "big")
        if second & MASKED:
            begin += 4
    return begin, size


class FrameProtocol(WebSocketProtocol13):
    """The frames of one connection.

    Text messages go to the handler's `on_message`, binary ones to `on_binaries`: those that were read together are
    handed over together, as a list. If either returns an awaitable, it is awaited before the next message is handed
    over.

    Messages are not compressed. A message larger than `params.max_message_size` closes the connection, unless
    `discards` is overridden.

    Args:
        handler: Tornado's WebSocketHandler or client connection.
        mask_outgoing: True in a client. A client's frames are masked and a server's are not; a frame of the other
            end that breaks this rule closes the connection (RFC 6455, 5.1).
        params: Of these, `max_message_size` counts here; the rest is Tornado's.
    """

    handler: Any
    stream: Any  # what the protocol uses of an IOStream: here a TcpTransport or TlsTransport

    def __init__(self, handler: Any, mask_outgoing: bool, params: Params) -> None:
        super().__init__(handler, mask_outgoing, params)
        self._peer_mask = 0 if mask_outgoing else MASKED  # the mask bit of the frames that are read
        self._partial = bytearray()  # the beginning of a frame
        self._partial_needs = 0  # bytes that this frame has at least
        # Of a large frame: its first byte, how its next bytes are masked, what has come of its payload, and how many
        # bytes are still to come, which are taken or discarded.
        self._large_first = 0
        self._large_mask = b""
        self._large_payload = bytearray()
        self._take = self._discard = 0
        self._ended = False
        self._moving: asyncio.Task[None] | None = None
        # While reading is suspended: bytes that were read, and where the first unhandled frame begins in them.
        self._held: tuple[bytes, int] | None = None

    def discards(self, size: int, held: int) -> bool:
        """Decide what happens to a frame that makes its message too large; called before its payload is read.

        Args:
            size: Bytes of the frame's payload.
            held: Bytes of the message's earlier fragments.

        Returns:
            Whether the frame's payload is discarded; otherwise it is read. Here neither: the connection is closed.
        """
        self._fail(TOO_LARGE, "message too big")
        return False

    @property
    def kept(self) -> int:
        """Bytes that are kept of a message that is not whole."""
        fragments = self._fragmented_message_buffer
        return len(self._partial) + len(self._large_payload) + (0 if fragments is None else len(fragments))

    def drop(self) -> int:
        """Drop what is kept of a message that is not whole, and discard the rest of its frame.

        The beginning of a frame stays where its size is not known yet: without it, the rest could not be understood.

        Returns:
            The bytes dropped.
        """
        before = self.kept
        if self._take:
            self._take, self._discard = 0, self._take
            self._large_payload = bytearray()
        elif len(self._partial) >= _payload_bounds(bytes(self._partial[:MAX_HEAD]), 0)[0]:
            self._discard, self._large_first = self._partial_needs - len(self._partial), self._partial[0]
            self._partial = bytearray()
        if self._fragmented_message_buffer is not None:
            self._fragmented_message_buffer.clear()
        return before - self.kept

    # -- writing -------------------------------------------------------------------------------------------------

    def send(self, opcode: int, data: bytes) -> None:
        """Write a frame without waiting.

        Raises:
            StreamClosedError: The connection is closed.
            StreamBufferFullError: The other end does not read.
        """
        size, mark = len(data), MASKED if self.mask_outgoing else 0
        if size < 126:
            head = bytes((FIN | opcode, mark | size))
        elif size < 1 << 16:
            head = bytes((FIN | opcode, mark | 126, size >> 8, size & 0xFF))
        else:
            head = bytes((FIN | opcode, mark | 127)) + size.to_bytes(8, "big")
        if mark:
            mask = next(_masks)
            self.stream.write(b"".join((head, mask, apply_mask(mask, data))))
        else:
            self.stream.write(head + data)

    @property
    def blocked(self) -> bool:
        """Whether written bytes wait because the kernel did not accept them: the other end does not read."""
        return bool(self.stream.writing())

    async def drained(self) -> None:
        """Wait until the kernel has accepted all that was written, or the connection is gone."""
        await self.stream.drained()

    def _write_frame(self, fin: bool, opcode: int, data: bytes, flags: int = 0) -> asyncio.Future[None]:
        # Tornado calls this for control frames and in write_message, and waits for the future of a pong before it
        # writes another.
        self.send(opcode, data)
        if self.blocked:
            return asyncio.create_task(self.drained(), name="websocket write")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future

    # -- the end -------------------------------------------------------------------------------------------------

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Begin the closing handshake.

        A reason without a code is Tornado's own "ping timed out". Tornado would send 1000 with it, which means a
        normal end.
        """
        try:
            super().close(SERVER_ERROR if code is None and reason is not None else code, reason)
        except StreamBufferFullError:  # the other end does not read: it will not read the close frame either
            self._abort()

    def _fail(self, code: int, reason: str) -> None:
        """Close at once and tell the other end why (RFC 6455, 7.1.7): its frames cannot be understood any more."""
        self.client_terminated = True  # so that no answer to the close frame is awaited
        self.close(code, reason)

    def _abort(self) -> None:
        """End the connection now, whatever it waits for. Tornado calls this 5 s after a close that is not answered."""
        super()._abort()
        if isinstance(self.stream, TcpTransport | TlsTransport):
            self.stream.abort()
        if not self._ended:
            asyncio.get_running_loop().call_soon(self._end)

    def _end(self) -> None:
        if not self._ended:
            self._ended = True
            self._held = None
            self._abort()
            self.handler.on_ws_connection_close(self.close_code, self.close_reason)
            # These objects refer to each other. A cycle of them waits for the garbage collector, which runs rarely.
            self._moving = None
            if isinstance(self.stream, TcpTransport | TlsTransport):
                self.stream.release()

    # -- reading -------------------------------------------------------------------------------------------------

    async def _receive_frame_loop(self) -> None:
        """Take the connection over; `on_ws_connection_close` follows when it ends."""
        # In a task of its own: the request's task would keep all the request's coroutines for as long.
        self._moving = asyncio.create_task(self._take_over(), name="websocket")

    async def _take_over(self) -> None:
        stream = self.stream
        kind = TlsTransport if isinstance(stream, SSLIOStream) else TcpTransport
        self.stream = kind(stream, self.feed, self._end)
        try:
            await self.stream.run()
        except (StreamClosedError, asyncio.CancelledError):
            self._end()
        except OSError as exc:  # no file descriptor is left, for example: then there are many
            log.warning("a connection could not be taken over: %s", exc)
            self._end()

    def feed(self, data: bytes) -> None:
        """Handle what was read."""
        if self._held is not None:  # reading is suspended, but these bytes were on their way
            before, at = self._held
            self._held = before[at:] + data, 0
            self.stream.pause()
            return
        at = 0
        if self._take or self._discard:
            at = self._feed_large(data, 0)
            if self._take or self._discard:
                return
            payload, self._large_payload = self._large_payload, bytearray()
            wait = self._frame(self._large_first, payload)
            if wait is not None:
                self._hold(data, at, wait)
                return
        elif self._partial:
            self._partial += data
            if len(self._partial) < self._partial_needs:
                return
            data, self._partial = bytes(self._partial), bytearray()
        self._handle(data, at)

    def _feed_large(self, data: bytes, at: int) -> int:
        """Take, or discard, what `data` has from `at` on of a large frame; return where the next one begins."""
        end = at + min(self._take or self._discard, len(data) - at)
        if self._take:
            piece, turn = data[at:end], len(self._large_payload) % 4
            if self._large_mask and piece:
                piece = apply_mask(self._large_mask[turn:] + self._large_mask[:turn], piece)
            self._large_payload += piece
            self._take -= len(piece)
        else:
            self._discard -= end - at
        return end

    def _handle(self, data: bytes, at: int) -> None:
        """Handle the frames in `data` from `at` on; keep the beginning of one that is not whole."""
        end, handled = len(data), 0
        while not self.client_terminated:
            messages, at = self._binaries(data, at, FRAMES_PER_TURN - handled)
            if messages:
                wait = self._call(self.handler.on_binaries, messages)
                handled += len(messages)
            else:
                begin, size = _payload_bounds(data, at)
                if end < begin:
                    self._keep(data, at, begin - at)
                    return
                discard = self._check(data[at], data[at + 1], size)
                if self.client_terminated:
                    return
                first, start, at = data[at], at, begin + size
                if at > end:
                    if discard or size > LARGE_PAYLOAD:
                        self._large_first = first
                        self._large_mask = data[begin - 4 : begin] if self._peer_mask else b""
                        self._take, self._discard = (0, size) if discard else (size, 0)
                        self._feed_large(data, begin)
                    else:
                        self._keep(data, start, at - start)
                    return
                payload = b"" if discard else data[begin:at]
                if self._peer_mask and payload:
                    payload = apply_mask(data[begin - 4 : begin], payload)
                wait = self._frame(first, payload)
                handled += 1
            if wait is not None or (handled == FRAMES_PER_TURN and at < end):
                self._hold(data, at, wait)
                return
            if at == end:
                return

    def _check(self, first: int, second: int, size: int) -> bool:
        """Check a frame by its first two bytes and its size, before its payload is there.

        Returns:
            Whether its payload is discarded. What is against the protocol has closed the connection.
        """
        if second & MASKED != self._peer_mask:
            self._fail(PROTOCOL_ERROR, "a client's frames must be masked, and a server's must not be")
        elif first & RESERVED:
            self._fail(PROTOCOL_ERROR, "no extension was agreed on")
        elif first & CONTROL and (size >= 126 or not first & FIN):
            self._fail(PROTOCOL_ERROR, "a control frame must be whole and have at most 125 bytes")
        else:
            fragments = self._fragmented_message_buffer
            held = 0 if fragments is None else len(fragments)
            return size + held > self.params.max_message_size and self.discards(size, held)
        return False

    def _binaries(self, data: bytes, at: int, most: int) -> tuple[list[bytes], int]:
        """Take the next frames as long as each is a whole binary message below 64 KiB.

        This is the common case, and takes a third of the time of the general one.

        Returns:
            At most `most` messages, perhaps none, and where the next frame begins.
        """
        messages: list[bytes] = []
        if self._fragmented_message_buffer is not None:
            return messages, at
        end, largest, peer_mask = len(data), min(self.params.max_message_size, 0xFFFF), self._peer_mask
        while len(messages) < most and end - at >= 2 and data[at] == WHOLE_BINARY:
            begin, size = _payload_bounds(data, at)
            after = begin + size
            if after > end or size > largest or data[at + 1] & MASKED != peer_mask:
                break
            payload = data[begin:after]
            messages.append(apply_mask(data[begin - 4 : begin], payload) if peer_mask else payload)
            at = after
        return messages, at

    def _keep(self, data: bytes, at: int, needs: int) -> None:
        """Keep the beginning of a frame that has `needs` bytes at least."""
        self._partial, self._partial_needs = bytearray(data[at:]), needs

    def _frame(self, first: int, data: bytes | bytearray) -> Awaitable[Any] | None:
        """Handle one frame.

        Args:
            first: Its first byte.
            data: Its payload, unmasked.

        Returns:
            What to await before the next frame, or None.
        """
        opcode, last = first & 0x0F, first & FIN
        if opcode & CONTROL:
            return self._control(opcode, bytes(data))
        fragments = self._fragmented_message_buffer
        if (fragments is None) == (not opcode):
            self._fail(PROTOCOL_ERROR, "a fragment that belongs to no message, or a message within another")
            return None
        if fragments is not None:
            fragments += data
            if not last:
                return None
            opcode, data, self._fragmented_message_buffer = self._fragmented_message_opcode or 0, fragments, None
        elif not last:
            self._fragmented_message_opcode, self._fragmented_message_buffer = opcode, bytearray(data)  # type: ignore[assignment]
            return None
        if opcode not in (TEXT, BINARY):
            self._fail(PROTOCOL_ERROR, f"unknown opcode {opcode}")
            return None
        take = self.handler.on_binaries if opcode == BINARY else self.handler.on_message
        try:
            message = [bytes(data)] if opcode == BINARY else data.decode()
        except UnicodeDecodeError:
            self._fail(INVALID_TEXT, "a text message must be UTF-8")
            return None
        return self._call(take, message) if len(data) < LARGE_MESSAGE else self._call_later(take, message)

    def _control(self, opcode: int, data: bytes) -> Awaitable[Any] | None:
        """Handle a control frame, as Tornado does; what it does not check is checked here."""
        if opcode not in (CLOSE, PING, PONG):
            self._fail(PROTOCOL_ERROR, f"unknown opcode {opcode}")
            return None
        if opcode == CLOSE and (wrong := _close_error(data)) is not None:
            self._fail(*wrong)
            return None
        wait = self._call(partial(self._handle_message, opcode), data)
        if opcode == CLOSE and not data:
            self.close_code = NO_STATUS
        return wait

    def _call(self, take: Callable[[Any], Awaitable[Any] | None], message: Any) -> Awaitable[Any] | None:
        """Hand a message over; an exception ends the connection.

        It must not escape: asyncio and uvloop close a connection whose `data_received` raises, but not one whose
        `connection_made` does, and the first frames may be handled there.
        """
        try:
            return take(message)
        except StreamBufferFullError:  # a pong, for one who does not read
            pass
        except Exception:
            self.handler.log_exception(*sys.exc_info())
        self._abort()
        return None

    async def _call_later(self, take: Callable[[Any], Awaitable[Any] | None], message: Any) -> None:
        await asyncio.sleep(0)
        wait = self._call(take, message)
        if wait is not None:
            await wait

    def _hold(self, data: bytes, at: int, wait: Awaitable[Any] | None) -> None:
        """Suspend reading until `wait` is done, or (None) until other connections had their turn."""
        # Without the message that it waits for, which may be the most of it.
        self._held = (data[at:], 0) if at > MAX_HANDLED else (data, at)
        self.stream.pause()
        if wait is None:
            asyncio.get_running_loop().call_soon(self._go_on)
        else:
            task = asyncio.create_task(wait, name="websocket wait") if asyncio.iscoroutine(wait) else None
            (task or asyncio.ensure_future(wait)).add_done_callback(self._waited)

    def _waited(self, done: asyncio.Future[Any]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None:
            self.handler.log_exception(type(error), error, error.__traceback__)
            self._abort()
        self._go_on()

    def _go_on(self) -> None:
        if self._held is None or self.client_terminated:
            return
        (data, at), self._held = self._held, None
        self._handle(data, at)
        if self._held is None:
            self.stream.resume()
