"""The connection of gateways and workers: commands of one turn of the event loop travel together."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from typing import Any, NamedTuple

import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from asrserver.errors import Unavailable

log = logging.getLogger("asrserver.broker")

#: Seconds that commands are tried again while Redis is away, before their callers are told.
RETRY_SECONDS = 30.0

#: Seconds that the replies to one pipeline may take. One timeout for all: redis-py's own is set anew for each reply,
#: which is a tenth of what a chunk costs here.
REPLY_SECONDS = 5.0

#: Seconds between pipelines, for a pipeline costs as much as ten commands: the least, and the most. Under load, where
#: many go together, the pause grows: at 5,000 chunks a second a hundred share one.
MIN_LINGER_SECONDS = 0.004
MAX_LINGER_SECONDS = 0.02

#: Commands in one pipeline, so that one flush never holds the loop for long.
MAX_BATCH = 500

#: ScriptCalls that are joined to one script at most, and their bytes: it holds Redis for less than a millisecond.
MAX_JOINED = 64
MAX_JOINED_BYTES = 1 << 20

#: Errors that mean "Redis is not there just now"; BusyLoadingError: it is reading its append-only file.
CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError)


class _EncodedConnection:
    """A connection of redis-py to which a EncodedCommand may be given, behind its name."""

    def pack_commands(self, commands: Iterable[tuple[Any, ...]]) -> list[bytes]:
        output: list[bytes] = []
        for command in commands:
            if isinstance(command[-1], EncodedCommand):
                output += command[-1]
            else:
                output += super().pack_commands([command])  # type: ignore[misc]
        return output


def connect(url: str, timeout: float | None, connections: int = 8) -> redis.asyncio.Redis:
    """A client whose every reply is waited for `timeout` seconds; None leaves that to the caller."""
    # redis-py 8 changed its defaults (RESP3, socket_timeout 5 s, 100 connections that raise): none is relied on.
    pool = redis.asyncio.BlockingConnectionPool.from_url(
        url,
        protocol=2,
        max_connections=connections,
        timeout=5,
        socket_timeout=timeout,
        socket_connect_timeout=3,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
    )
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_EncodedConnection, kind), {})
    return redis.asyncio.Redis.from_pool(pool)


_Pending = tuple[Callable[[Any], None], tuple[Any, ...], int]


def _joined(batch: list[_Pending]) -> Iterator[tuple[tuple[Any, ...], list[_Pending]]]:
    """The commands to send, in their order, and of each what was asked for."""
    parts: list[_Pending] = []
    size = 0
    for pending in batch:
        part = pending[1][0]
        joins = isinstance(part, ScriptCall)
        if parts and not (
            joins
            and len(parts) < MAX_JOINED
            and size < MAX_JOINED_BYTES
            and part.script is parts[0][1][0].script
            and part.common == parts[0][1][0].common
        ):
            yield _whole([each[1][0] for each in parts]), parts
            parts, size = [], 0
        if joins:
            parts.append(pending)
            size += pending[2]
        else:
            yield pending[1], [pending]
    if parts:
        yield _whole([each[1][0] for each in parts]), parts


def _whole(parts: list[ScriptCall]) -> tuple[Any, ...]:
    script, _, common, number, _ = parts[0]
    keys = b"%d" % (2 * len(parts))
    head = [b"*%d\r\n" % (4 + (2 + number) * len(parts)), encode(b"EVAL", script.encode(), keys)]
    head += [part.keys for part in parts]
    head.append(encode(common.encode()))
    return ("EVAL", EncodedCommand((b"".join(head), *[part.arguments for part in parts])))


def _abbreviated(commands: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """In one pipeline a script is sent once and then named: Redis takes half as long. Never named unsent: where Redis
    has forgotten it, the command after it would be done before it."""
    sent = set()
    for command in commands:
        if command[0] == "EVAL" and not isinstance(command[1], EncodedCommand):
            digest = _digest(command[1])
            if digest in sent:
                command = ("EVALSHA", digest, *command[2:])
            sent.add(digest)
        yield command


@cache
def _digest(script: str) -> str:
    return hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest()


def _takes_nothing(error: redis.ResponseError) -> bool:
    full = isinstance(error, redis.OutOfMemoryError | redis.ReadOnlyError)
    return full or str(error).startswith("MISCONF")  # its disk is full, say


class ScriptCall(NamedTuple):
    """One call of a script that takes any number of them at once: two keys each, one argument that is `common` to all,
    and some arguments each. Keys and arguments are encoded (see `encode`). The script replies once for each call."""

    script: str
    keys: bytes
    common: str
    number: int  # of arguments
    arguments: bytes


class EncodedCommand(tuple[bytes, ...]):
    """A command as it is sent: redis-py 8 takes 20 µs to pack what a chunk is, hiredis twice as long."""

    __slots__ = ()


def encode(*arguments: bytes) -> bytes:
    """The arguments of a command as Redis reads them: https://redis.io/docs/latest/develop/reference/protocol-spec/"""
    return b"".join([piece for argument in arguments for piece in (b"$%d\r\n" % len(argument), argument, b"\r\n")])


class Pipeline:
    """Commands issued in one turn of the event loop, or within the linger, travel as one pipeline, in their order.

    A plain `await redis.xadd()` for every 100 ms chunk costs a gateway three times what its WebSocket frame does, most
    of it per-command overhead. While Redis is away, everything waits in order and is sent again; after `RETRY_SECONDS`
    seconds the callers get Unavailable. `bytes` is what waits, for callers that can slow their source down. Consecutive
    ScriptCalls of one script are one command: Redis and redis-py take twice as long for them one by one.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._pending: list[_Pending] = []
        self._task: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        self._sent = 0.0
        self._linger = MIN_LINGER_SECONDS
        self.back_at = 0.0  # time.monotonic() at which Redis was there again after it had been away
        self.bytes = 0

    def call(self, callback: Callable[[Any], None], *command: Any, size: int = 0) -> None:
        """Issue a command or a ScriptCall; `callback` gets the reply or the exception, in a later turn of the loop."""
        self._pending.append((callback, command, size))
        self.bytes += size
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def submit(self, *command: Any, size: int = 0) -> asyncio.Future[Any]:
        """Issue a command; the future is its reply."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(reply: Any) -> None:
            if not future.cancelled():
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

        self.call(done, *command, size=size)
        return future

    async def _run(self) -> None:
        try:
            while self._pending:
                # Alone, a command goes at once; under load, several go together.
                pause = self._sent + self._linger - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
                self._sent = time.monotonic()
                batch = self._pending[:MAX_BATCH]
                del self._pending[:MAX_BATCH]
                self._linger = min(MIN_LINGER_SECONDS * (1 + len(batch) // 4), MAX_LINGER_SECONDS)
                groups = list(_joined(batch))
                replies = await self._execute([command for command, _ in groups])
                for (_, members), reply in zip(groups, replies, strict=True):
                    answers = [reply] * len(members)
                    if isinstance(members[0][1][0], ScriptCall) and not isinstance(reply, Exception):
                        answers = reply
                    for (callback, _, size), answer in zip(members, answers, strict=True):
                        self.bytes -= size
                        self._answer(callback, answer)
        finally:
            self._task = None

    def _answer(self, callback: Callable[[Any], None], reply: Any) -> None:
        if isinstance(reply, redis.ResponseError) and _takes_nothing(reply):
            reply = Unavailable("broker_full", f"the broker takes nothing now: {reply}", 10.0)
        try:
            callback(reply)
        except Exception:
            log.exception("a reply's callback failed")

    async def _execute(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        delay = 0.05
        while True:
            pipe = self._client.pipeline(transaction=False)
            for command in _abbreviated(commands):
                pipe.execute_command(*command)
            try:
                async with asyncio.timeout(REPLY_SECONDS):
                    replies = await pipe.execute(raise_on_error=False)
                loading = next((reply for reply in replies if isinstance(reply, redis.BusyLoadingError)), None)
                if loading is None:
                    if self._away_since is not None:
                        self._away_since, self.back_at = None, time.monotonic()
                    return replies
                reason: BaseException = loading
            except CONNECTION_ERRORS as exc:
                reason = exc
            except Exception as exc:
                log.exception("a pipeline failed")
                return [exc] * len(commands)
            # Since Redis was last heard, not since this batch was begun: what waited behind others does not wait anew.
            if self._away_since is None:
                self._away_since = time.monotonic()
            if time.monotonic() - self._away_since > RETRY_SECONDS:
                log.error("Redis has been away for %.0f s: %s", RETRY_SECONDS, reason)
                return [Unavailable("broker_unavailable", "the broker cannot be reached", 10.0)] * len(commands)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)

    async def drain(self) -> None:
        """Wait until nothing is waiting."""
        while self._task is not None:
            await asyncio.wait([self._task])
