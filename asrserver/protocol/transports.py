"""What a WebSocket connection is read from and written to, once Tornado has upgraded it: TCP, or TLS over TCP.

Both classes offer what Tornado's WebSocket protocol uses of an IOStream (write, close, closed, io_loop), and besides
`pause` and `resume` for reading and `writing` and `drained` for back-pressure.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from tornado.iostream import IOStream, SSLIOStream, StreamBufferFullError, StreamClosedError

if TYPE_CHECKING:
    from tornado.ioloop import IOLoop

#: Bytes read at a time under TLS.
TLS_READ_BYTES = 1 << 16


def _ignore(_data: bytes = b"") -> None: ...


class TcpTransport(asyncio.Protocol):
    """A TCP connection, moved from a Tornado stream to a transport of the event loop.

    Written bytes go to the kernel at once. What the kernel does not accept waits here, up to the stream's own limit
    (`max_write_buffer_size`).

    Args:
        stream: The upgraded connection; it is closed when the socket has moved.
        feed: Is called with the bytes of each read.
        end: Is called once, when nothing more will be read.
    """

    __slots__ = (
        "_closed",
        "_drained",
        "_end",
        "_limit",
        "_stream",
        "_transport",
        "_unread",
        "_unsent",
        "data_received",
        "io_loop",
    )

    def __init__(self, stream: IOStream, feed: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self.io_loop: IOLoop = stream.io_loop
        self._stream: IOStream | None = stream
        self.data_received = feed  # type: ignore[assignment]  # saves one call for each read
        self._limit = stream.max_write_buffer_size
        self._end = end
        self._drained: asyncio.Future[None] | None = None
        self._unread = b""  # read by the stream, and not yet fed
        self._unsent = bytearray()  # written before there was a transport
        self._transport: asyncio.Transport | None = None
        self._closed = stream.closed()

    async def run(self) -> None:
        """Move the socket; reading goes on by callbacks after this returns.

        Raises:
            StreamClosedError: The connection is already gone.
            OSError: The process has no file descriptor left for the copy of the socket.
        """
        stream, self._stream = self._stream, None
        assert stream is not None
        try:
            await stream.write(b"")  # waits until earlier writes are done
            unread = stream._read_buffer_size
            self._unread = await stream.read_bytes(unread) if unread else b""
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

    # -- in place of an IOStream ---------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Write without waiting.

        Raises:
            StreamClosedError: The connection is closed.
            StreamBufferFullError: The other end does not read, and the bytes that wait would exceed the limit.
        """
        if self._closed:
            raise StreamClosedError
        if self._transport is None:
            self._unsent += data
            return
        waiting = self._transport.get_write_buffer_size() if self._drained is not None else 0
        if waiting and self._limit is not None and waiting + len(data) > self._limit:
            raise StreamBufferFullError("the other end does not read")
        self._transport.write(data)

    def writing(self) -> bool:
        """Whether bytes wait because the kernel did not accept them."""
        return self._drained is not None

    async def drained(self) -> None:
        """Wait until the kernel has accepted all that was written, or the connection is gone."""
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
        else:  # a regular close would wait for a client that does not read
            self._transport.abort()

    def abort(self) -> None:
        """Close at once: what waits to be written is dropped."""
        self._closed = True
        if self._transport is not None:
            self._transport.abort()

    def pause(self) -> None:
        """Stop reading, until `resume`."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()

    def resume(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def release(self) -> None:
        """Drop the references to the reader, after the end: a cycle of them would wait for the garbage collector."""
        self.data_received, self._end = _ignore, _ignore  # type: ignore[assignment]

    # -- callbacks of asyncio ------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport = cast(asyncio.Transport, transport)  # uvloop's does not inherit from it
        transport.set_write_buffer_limits(0)
        if self._unsent:
            transport.write(bytes(self._unsent))
            self._unsent.clear()
        if self._closed:
            transport.close()
        elif self._unread:
            unread, self._unread = self._unread, b""
            self.data_received(unread)

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


class TlsTransport:
    """The same for a TLS connection. Its TLS state cannot be taken from Tornado's stream, which stays in use.

    Args:
        stream: The upgraded connection.
        feed: Is called with the bytes of each read.
        end: Is not called: `run` raises at the end.
    """

    def __init__(self, stream: SSLIOStream, feed: Callable[[bytes], None], end: Callable[[], None]) -> None:
        self.io_loop = stream.io_loop
        self._stream = stream
        self._feed = feed
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._last_write: asyncio.Future[None] | None = None

    async def run(self) -> None:
        """Read until the connection ends.

        Raises:
            StreamClosedError: The connection has ended.
        """
        while True:
            self._feed(await self._stream.read_bytes(TLS_READ_BYTES, partial=True))
            await self._may_read.wait()

    def write(self, data: bytes) -> None:
        """Write without waiting; raises StreamClosedError or StreamBufferFullError as TcpTransport.write does."""
        self._last_write = self._stream.write(data)

    def writing(self) -> bool:
        """Whether bytes wait because the kernel did not accept them."""
        return self._stream.writing()

    async def drained(self) -> None:
        """Wait until the kernel has accepted all that was written, or the connection is gone."""
        if self._last_write is not None:
            await asyncio.wait([self._last_write])

    def closed(self) -> bool:
        return self._stream.closed()

    def close(self) -> None:
        self._stream.close()
        self.resume()

    def abort(self) -> None:
        """Close at once, as `close` does here."""
        self.close()

    def pause(self) -> None:
        """Stop reading, until `resume`."""
        self._may_read.clear()

    def resume(self) -> None:
        self._may_read.set()

    def release(self) -> None:
        """Drop the references to the reader, after the end: a cycle of them would wait for the garbage collector."""
        self._feed = _ignore
