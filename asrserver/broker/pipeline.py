"""Auto-pipelining: commands that are issued in one turn of the event loop travel to Redis together, in their order."""

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

from asrserver.broker.raw_connection import BatchConnection, EncodedCommand, encode
from asrserver.broker.sentinel import asyncio_client, is_refusal
from asrserver.errors import Unavailable

log = logging.getLogger("asrserver.broker")

#: Seconds for which commands are retried while Redis is away; after that their callers get an error.
RETRY_SECONDS = 30.0

#: Seconds for which Redis may be away, as during a restart, before the log says so.
QUIET_SECONDS = 3.0

#: Seconds after which clients are told to try again while Redis is away or full.
RETRY_AFTER = 3.0

#: Seconds that connecting and all replies to one pipeline may take.
REPLY_SECONDS = 5.0

#: Seconds that Redis may take to answer where a client waits for it.
ASK_SECONDS = 3.0

#: Seconds from one pipeline to the next: the minimum, the addition for each command with data in the one before, and
#: the maximum. At 1,000 chunks a second two share a pipeline, and one write and sync of Redis; at 5,000 a hundred do.
MIN_LINGER_SECONDS = 0.002
LINGER_SECONDS_EACH = 0.0002
MAX_LINGER_SECONDS = 0.02

#: Maximum number of commands in one pipeline, so that a flush never blocks the event loop for long.
MAX_BATCH = 500

#: Maximum number of script calls in one EVAL, and the bytes after which no further one is added: a script of that size
#: holds Redis for less than a millisecond.
MAX_MERGED_CALLS = 64
MAX_MERGED_BYTES = 1 << 20

#: Errors that mean "Redis cannot be reached now", or is still reading its append-only file.
CONNECTION_ERRORS = (redis.ConnectionError, redis.TimeoutError, OSError)


class ScriptCall(NamedTuple):
    """One call of a script that handles any number of calls in one EVAL and returns one reply for each.

    Attributes:
        script: The Lua source.
        keys: The two keys of the call, encoded (see `encode`).
        common: The first argument of the script; only calls with the same one are merged.
        argument_count: The number of arguments of this call.
        arguments: These arguments, encoded.
    """

    script: str
    keys: bytes
    common: str
    argument_count: int
    arguments: bytes


def connect(url: str, timeout: float | None, connections: int = 8) -> redis.asyncio.Redis:
    """Create a client with a pool of connections.

    Args:
        url: The URL of Redis.
        timeout: Seconds that each reply may take; with None the caller bounds its waits.
        connections: Connections of the pool at most.

    Raises:
        SettingError: The URL cannot be used.
    """
    # redis-py 8 changed its defaults (RESP3, socket_timeout 5 s, 100 connections that raise): rely on none of them.
    return asyncio_client(
        url,
        protocol=2,
        max_connections=connections,
        timeout=5,
        socket_timeout=timeout,
        socket_connect_timeout=3,
        health_check_interval=0,
        retry=Retry(NoBackoff(), 0),
    )


#: A command that waits for its reply: its callback, the command (or one ScriptCall), and its share of Pipeline.bytes.
_Pending = tuple[Callable[[Any], None], tuple[Any, ...], int]


class Pipeline:
    """Sends commands in the order in which they were issued, many in one write.

    A plain `await redis.xadd()` for every 100 ms chunk costs a gateway three times as much as the chunk's WebSocket
    frame, most of it per-command overhead. While Redis is away, all commands wait in order and are sent again; after
    RETRY_SECONDS their callers get Unavailable. Consecutive ScriptCalls of one script become one EVAL: one by one they
    take Redis and redis-py twice as long.

    Attributes:
        bytes: The sizes of all commands without a reply, for callers that can slow their source down.
        on_replies: Called after the replies to each pipeline, when `bytes` has become less.
    """

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self._client = client
        self._connection: BatchConnection | None = None
        self._pending: list[_Pending] = []
        self._task: asyncio.Task[None] | None = None
        self._away_since: float | None = None
        self._away_logged = False
        self._closed = False
        self._sent = 0.0
        self._linger = MIN_LINGER_SECONDS
        self.bytes = 0
        self.on_replies: Callable[[], None] = _nothing

    @property
    def away(self) -> bool:
        """Whether Redis did not answer when it was last sent something."""
        return self._away_since is not None

    def call(self, callback: Callable[[Any], None], *command: Any, size: int = 0) -> None:
        """Issue a command.

        Args:
            callback: Gets the reply or the exception, in a later turn of the event loop.
            command: The name and the arguments of the command; or one ScriptCall.
            size: The bytes of data that it carries, which count in `bytes` until its reply. The more commands carry
                data, the longer the next ones wait for each other.
        """
        if self._closed:  # a new connection would be made, which nobody closes
            error = Unavailable("broker_unavailable", "this process shuts down", 2.0)
            asyncio.get_running_loop().call_soon(callback, error)
            return
        self._pending.append((callback, command, size))
        self.bytes += size
        if self._task is None:
            self._task = asyncio.create_task(self._run(), name="redis-pipeline")

    def submit(self, *command: Any, size: int = 0) -> asyncio.Future[Any]:
        """Issue a command; the future gets its reply or its exception."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def done(reply: Any) -> None:
            if not future.cancelled():
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)

        self.call(done, *command, size=size)
        return future

    async def ask(self, *command: Any) -> Any:
        """Issue a command whose reply a client waits for.

        Raises:
            Unavailable: Redis does not answer within ASK_SECONDS.
        """
        try:
            async with asyncio.timeout(ASK_SECONDS):
                return await self.submit(*command)
        except TimeoutError:
            raise Unavailable("broker_unavailable", "Redis cannot be reached", 5.0) from None

    async def drain(self) -> None:
        """Wait until no command waits for its reply."""
        while self._task is not None:
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """Wait as `drain` does, and disconnect; from then on callers get Unavailable."""
        await self.drain()
        self._closed = True
        if self._connection is not None:
            await self._connection.close()

    async def _run(self) -> None:
        try:
            while self._pending:
                # A single command is sent at once; under load, several go together.
                pause = self._sent + self._linger - time.monotonic()
                if pause > 0:
                    await asyncio.sleep(pause)
                self._sent = time.monotonic()
                batch = self._pending[:MAX_BATCH]
                del self._pending[:MAX_BATCH]
                # Reads do not count: a gateway reads hundreds of sessions at once to store them.
                load = sum(1 for _, _, size in batch if size)
                self._linger = min(max(MIN_LINGER_SECONDS, LINGER_SECONDS_EACH * load), MAX_LINGER_SECONDS)
                groups = list(_merged(batch))
                replies = await self._execute([command for command, _ in groups])
                for (_, members), reply in zip(groups, replies, strict=True):
                    self._answer(members, reply)
                self.on_replies()
        finally:
            self._task = None

    def _answer(self, members: list[_Pending], reply: Any) -> None:
        """Give the reply to a command to everything that the command carried."""
        answers = [reply] * len(members)
        if isinstance(members[0][1][0], ScriptCall) and not isinstance(reply, Exception):
            answers = reply
        for (callback, _, size), answer in zip(members, answers, strict=True):
            self.bytes -= size
            if isinstance(answer, redis.ResponseError) and _is_full(answer):
                answer = Unavailable("broker_full", f"Redis accepts no data now: {answer}", RETRY_AFTER)
            try:
                callback(answer)
            except Exception:
                log.exception("the callback of a reply failed")

    async def _execute(self, commands: list[tuple[Any, ...]]) -> list[Any]:
        delay = 0.05
        while True:
            try:
                async with asyncio.timeout(REPLY_SECONDS):
                    if self._connection is None or self._connection.lost:
                        self._connection = await BatchConnection.connect(self._client)
                    replies = await self._connection.execute(list(_abbreviated(commands)))
                if self._away_logged:
                    log.warning("Redis answers again")
                self._away_since, self._away_logged = None, False
                return replies
            except CONNECTION_ERRORS as exc:
                reason = exc
            except Exception as exc:
                log.exception("a pipeline failed")
                return [exc] * len(commands)
            # The time counts from when Redis stopped answering, not from the first try of this batch: commands that
            # waited behind others must not wait for another RETRY_SECONDS.
            if self._away_since is None:
                self._away_since = time.monotonic()
                if is_refusal(reason):  # waiting does not help: say it now
                    log.error("Redis cannot be used with this REDIS_URL: %s", reason)
            elif not self._away_logged and time.monotonic() - self._away_since > QUIET_SECONDS:
                log.warning("Redis does not answer, what it is asked waits: %s", reason)
                self._away_logged = True
            if time.monotonic() - self._away_since > RETRY_SECONDS:
                log.error("Redis has been unreachable for %.0f s: %s", RETRY_SECONDS, reason)
                return [Unavailable("broker_unavailable", "Redis cannot be reached", RETRY_AFTER)] * len(commands)
            await asyncio.sleep(delay)
            delay = min(delay * 2, 1.0)


def _merged(batch: list[_Pending]) -> Iterator[tuple[tuple[Any, ...], list[_Pending]]]:
    """Yield the commands to send, in order, each with what it carries: consecutive ScriptCalls are merged."""
    calls: list[ScriptCall] = []
    members: list[_Pending] = []
    size = 0
    for pending in batch:
        _, command, added = pending
        call = command[0]
        mergeable = isinstance(call, ScriptCall)
        if calls and not (
            mergeable
            and len(calls) < MAX_MERGED_CALLS
            and size < MAX_MERGED_BYTES
            and call.script is calls[0].script
            and call.common == calls[0].common
        ):
            yield _eval(calls), members
            calls, members, size = [], [], 0
        if mergeable:
            calls.append(call)
            members.append(pending)
            size += added
        else:
            yield command, [pending]
    if calls:
        yield _eval(calls), members


def _eval(calls: list[ScriptCall]) -> tuple[Any, ...]:
    """Return the one EVAL of all calls."""
    script, _, common, count, _ = calls[0]
    keys = b"%d" % (2 * len(calls))
    head = [b"*%d\r\n" % (4 + (2 + count) * len(calls)), encode(b"EVAL", script.encode(), keys)]
    head += [call.keys for call in calls]
    head.append(encode(common.encode()))
    return ("EVAL", EncodedCommand((b"".join(head), *[call.arguments for call in calls])))


def _abbreviated(commands: Iterable[tuple[Any, ...]]) -> Iterator[tuple[Any, ...]]:
    """Within one pipeline, send each script once and after that its digest only: Redis takes half as long.

    A digest is never sent without its script before it: if Redis had forgotten the script, the command would fail, and
    those behind it would overtake it.
    """
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


def _is_full(error: redis.ResponseError) -> bool:
    full = isinstance(error, redis.OutOfMemoryError)
    # For example its disk is full, or min-replicas-to-write is not met.
    return full or str(error).startswith(("MISCONF", "NOREPLICAS"))


def is_foreign(error: redis.ResponseError) -> bool:
    """Whether a key holds something of another type: another program has made it."""
    return "WRONGTYPE" in str(error)


def _nothing() -> None:
    """The default of Pipeline.on_replies."""
