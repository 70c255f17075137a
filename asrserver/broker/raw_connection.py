"""Connections to Redis without the layers of redis-py: it connects, and hiredis parses the replies.

redis-py 8.1 spends 80 µs on each pipeline and 8 µs on each command in it: on streams, locks, a pool, and on packing
arguments one by one. Here it is 11 µs and 0.6 µs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Self

import hiredis
import redis
import redis.asyncio

_INCOMPLETE = object()  # what hiredis returns while it needs more bytes for a reply


class EncodedCommand(tuple[bytes, ...]):
    """A whole command in the Redis protocol, in pieces. hiredis would take 40 µs to encode the command of a chunk."""

    __slots__ = ()


def encode(*arguments: bytes) -> bytes:
    """Encode arguments in the Redis protocol: https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    return b"".join([piece for argument in arguments for piece in (b"$%d\r\n" % len(argument), argument, b"\r\n")])


class RawConnection(asyncio.Protocol):
    """A connection that redis-py has opened, and whose socket is taken over from it.

    Attributes:
        lost: Whether it cannot be used any more.
    """

    def __init__(self, connection: Any, client: redis.asyncio.Redis) -> None:
        """Take over a connection of the client; `connect` opens one."""
        self._callbacks: Any = client.response_callbacks  # name of a command → what converts its reply
        self.lost = False
        self._connection = connection
        self._reader = hiredis.Reader(
            protocolError=redis.InvalidResponse, replyError=connection._parser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._transport = connection._writer.transport
        self._before = self._transport.get_protocol()
        self._transport.set_protocol(self)

    @classmethod
    async def connect(cls, client: redis.asyncio.Redis) -> Self:
        """Connect with the client's address, TLS, password and database.

        Raises:
            redis.RedisError, OSError: Redis cannot be reached, or refuses the connection.
        """
        connection = client.connection_pool.make_connection()
        try:
            await connection.connect()
            return cls(connection, client)
        except BaseException as exc:
            connection._close()
            if isinstance(exc, redis.ResponseError) and cannot_serve(exc):
                raise redis.ConnectionError(str(exc)) from None
            raise

    def received(self, replies: list[Any]) -> None:
        """Handle replies that arrived together; a reply may be an error."""
        raise NotImplementedError

    def ended(self, error: Exception) -> None:
        """Handle the end of the connection: no reply follows. May be called twice."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close the connection."""
        self.lost = True
        await self._connection.disconnect()

    # -- asyncio.Protocol --------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse bytes of replies."""
        replies = []
        try:
            self._reader.feed(data)
            while (reply := self._reader.gets()) is not _INCOMPLETE:
                replies.append(reply)
        except redis.InvalidResponse as exc:
            self._fail(redis.ConnectionError(f"Redis does not speak its protocol: {exc}"))
            return
        self.received(replies)

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the connection is closed."""
        self._fail(exc or redis.ConnectionError("Redis closed the connection"))
        self._before.connection_lost(exc)  # redis-py awaits this when it disconnects

    def _fail(self, error: Exception) -> None:
        self.lost = True
        self._transport.abort()
        self._connection._close()  # or redis-py warns of a connection that was not closed
        self.ended(error)


class BatchConnection(RawConnection):
    """A connection that carries one batch of commands at a time."""

    def __init__(self, connection: Any, client: redis.asyncio.Redis) -> None:
        super().__init__(connection, client)
        self._replies: list[Any] = []
        self._wanted = 0
        self._waiter: asyncio.Future[None] | None = None

    async def execute(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send commands in one write, and wait for all replies. Cancelling it closes the connection.

        Args:
            commands: Each has the name and the arguments of a command. Where the last item is an EncodedCommand, that
                is sent, and the name only says how to convert the reply.

        Returns:
            The replies as redis-py's methods return them; a command that failed has a redis.ResponseError.

        Raises:
            redis.ConnectionError: The connection is lost, or Redis is not ready.
        """
        if self.lost:
            raise redis.ConnectionError("the connection to Redis is lost")
        self._replies, self._wanted = [], len(commands)
        self._waiter = asyncio.get_running_loop().create_future()
        self._transport.writelines([piece for command in commands for piece in _pieces(command)])
        try:
            await self._waiter
            if refused := next(filter(cannot_serve, self._replies), None):
                raise redis.ConnectionError(str(refused))
        except BaseException:  # a late reply would be taken for the reply to another command
            self.abort()
            raise
        finally:
            self._waiter = None
        return [self._parsed(command, reply) for command, reply in zip(commands, self._replies, strict=True)]

    def abort(self) -> None:
        """Close the connection at once, without waiting for replies."""
        self._fail(redis.ConnectionError("the connection to Redis was given up"))

    def received(self, replies: list[Any]) -> None:
        self._replies += replies
        if self._waiter is None or len(self._replies) > self._wanted:
            self._fail(redis.ConnectionError("Redis sent more replies than there were commands"))
        elif len(self._replies) == self._wanted and not self._waiter.done():
            self._waiter.set_result(None)

    def ended(self, error: Exception) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)

    def _parsed(self, command: tuple[Any, ...], reply: Any) -> Any:
        callback = self._callbacks.get(command[0])
        return reply if callback is None or isinstance(reply, Exception) else callback(reply)


def cannot_serve(reply: Any) -> bool:
    """Whether a reply says that this Redis cannot serve now, and it or another one will soon.

    It is loading its data, or a script runs for too long, or it has become a replica: then the address leads to the new
    primary. UNBLOCKED is what a command gets that was blocked when it happened. redis-py looks for READONLY at the
    beginning only, and Redis 6.2 puts other words before it when a script fails.
    """
    if isinstance(reply, redis.ConnectionError | redis.ReadOnlyError):
        return True
    text = str(reply) if isinstance(reply, redis.ResponseError) else ""
    return text.startswith("BUSY ") or any(word in text for word in ("READONLY You", "UNBLOCKED"))


def _pieces(command: tuple[Any, ...]) -> Sequence[bytes]:
    return command[-1] if isinstance(command[-1], EncodedCommand) else (hiredis.pack_command(command),)
